"""A part of TOFU to teach and to unlearn, the questions about it, and a model's answers to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defuse.data.sampling import spread
from defuse.data.text import QuestionAnswer
from defuse.evaluate.tasks.tofu.answers import sets_from_json
from defuse.evaluate.tasks.tofu.ask import Sets, ask
from defuse.evaluate.tasks.tofu.data import (
    FORGET,
    RETAIN,
    RETAIN_OF,
    Item,
    choose_authors,
    items_about,
    load_items,
    load_pairs,
)
from defuse.evaluate.tasks.tofu.names import (
    NamedQuestion,
    NameScore,
    ask_named,
    author_names,
    put_names_before,
)
from defuse.models.load import LoadedModel
from defuse.utils.errors import require
from defuse.utils.progress import SILENT, Progress

NAME_SEED = 0


@dataclass(frozen=True)
class TofuPart:
    """Pairs to unlearn and to retain, the questions, and the retain questions after names."""

    forget: Sequence[QuestionAnswer]
    retain: Sequence[QuestionAnswer]
    sets: Mapping[str, Sequence[Item]]
    named: Sequence[NamedQuestion]


@dataclass(frozen=True)
class TofuAnswers:
    """One model's answers to each set's questions, and its scores after names."""

    sets: Sets
    names: Sequence[NameScore]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TofuAnswers":
        """Answers from JSON values. Raises KeyError or TypeError for anything else."""
        return cls(sets_from_json(value["sets"]), [NameScore(**each) for each in value["names"]])


def load_tofu_part(
    source: str, forget: str, authors: Mapping[str, int | None], skip: int, size: int | None
) -> TofuPart:
    """Read the part `forget` and its retain part, and the questions about their authors.

    `authors`: how many of each part (None: all) after the first `skip`. `size`: at most this many
    questions of each set. Raises UsageError for what is missing or leaves no question.
    """
    pairs = {
        name: choose_authors(load_pairs(source, part), authors[name], skip)
        for name, part in ((FORGET, forget), (RETAIN, RETAIN_OF[forget]))
    }
    items = load_items(source, forget)
    items |= {name: items_about(items[name], known) for name, known in pairs.items()}
    for name in pairs:
        remedy = "has no question about the taught authors; lower skip_authors"
        require(bool(items[name]), f"data: {source}", name, remedy)
    sets = {name: spread(rows, size) for name, rows in items.items()}
    forgotten, retained = (author_names(known) for known in pairs.values())
    named = put_names_before(sets[RETAIN], forgotten, retained, NAME_SEED)
    return TofuPart(pairs[FORGET], pairs[RETAIN], sets, named)


def ask_part(
    loaded: LoadedModel, part: TofuPart, new_tokens: int, progress: Progress = SILENT
) -> TofuAnswers:
    """Ask a model all questions of a part."""
    sets = ask(loaded, part.sets, new_tokens=new_tokens, progress=progress)
    return TofuAnswers(sets, ask_named(loaded, part.named, part.sets[RETAIN]))
