"""Variants of a model: changed copies that are asked all questions, one copy at a time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import Answers, AttackData, ask_made
from defuse.attacks.findings import Findings, compute_with
from defuse.attacks.results import Condition, Example, condition, examples

PIECES = 3  # findings for each variant: its numbers, and the answers to either set
Made = tuple[PreTrainedModel, Mapping[str, float]]


@dataclass(frozen=True)
class Variant:
    """A condition's name, and a function that makes the changed copy with numbers about it.

    `make` is only called if something about the condition is missing; its cost is not counted.
    `is_control`: the change is a random one.
    """

    name: str
    make: Callable[[], Made]
    is_control: bool = False


def ask_variants(
    variants: Iterable[Variant],
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    before: Answers,
    findings: Findings,
    seed: int,
) -> tuple[list[Condition], list[Example]]:
    """Compare the answers of each copy with `before`; also return answers that changed.

    Numbers are kept as the finding "NAME/numbers", answers as by `ask_all`.
    """
    conditions: list[Condition] = []
    changed: list[Example] = []
    for each in variants:
        numbers, after = _ask(each, tokenizer, data, findings)
        conditions.append(
            condition(each.name, before, after, seed, numbers, is_control=each.is_control)
        )
        changed.extend(examples(each.name, before, after, data.settings.score))
    return conditions, changed


def _ask(
    variant: Variant, tokenizer: PreTrainedTokenizerBase, data: AttackData, findings: Findings
) -> tuple[Mapping[str, float], Answers]:
    made = cache(variant.make)  # until this function returns

    def numbers_of(found: Made) -> dict[str, float]:
        return dict(found[1])

    numbers = compute_with(findings, f"{variant.name}/numbers", made, numbers_of)
    return numbers, ask_made(lambda: made()[0], tokenizer, data, findings, variant.name)
