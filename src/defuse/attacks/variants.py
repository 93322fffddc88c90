"""Copies of a model, each changed in a way of its own and asked everything, one after the other."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.beside import once_with
from defuse.attacks.data import Answers, Material, ask_made
from defuse.attacks.notes import Notes
from defuse.attacks.results import Condition, Example, condition, examples

Made = tuple[PreTrainedModel, Mapping[str, float]]


@dataclass(frozen=True)
class Change:
    """A condition's name, and what gives the changed copy and numbers about it.

    `make` is not called where all about the condition is noted, and its cost is not noted.
    """

    name: str
    make: Callable[[], Made]


def ask_changed(
    changes: Iterable[Change],
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    before: Answers,
    notes: Notes,
    seed: int,
) -> tuple[list[Condition], list[Example]]:
    """How each copy answers against `before`, and answers that turned; one copy is kept at a time.

    Numbers are noted as "NAME/numbers", answers as by `ask_all`.
    """
    conditions: list[Condition] = []
    turned: list[Example] = []
    for change in changes:
        numbers, after = _ask(change, tokenizer, material, notes)
        conditions.append(condition(change.name, before, after, seed, numbers))
        turned.extend(examples(change.name, before, after, material.settings.score))
    return conditions, turned


def _ask(
    change: Change, tokenizer: PreTrainedTokenizerBase, material: Material, notes: Notes
) -> tuple[Mapping[str, float], Answers]:
    made = cache(change.make)  # until this function ends

    def numbers_of(found: Made) -> dict[str, float]:
        return dict(found[1])

    numbers = once_with(notes, f"{change.name}/numbers", made, numbers_of)
    return numbers, ask_made(lambda: made()[0], tokenizer, material, notes, change.name)
