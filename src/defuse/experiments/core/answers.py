"""Answers to multiple-choice questions as experiments keep, read and pool them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, ORIGINAL

FORGET_SET, RETAIN_SET = "forget", "retain"

NUMBERS = ("correct", "logprob", "logprobs")  # of an answer; what is beside them was asked
# How version 0.1.0 spells variants in its files.
OLD_VARIANTS = {
    "forget": FORGET_TOKEN,
    "control": CONTROL_TOKEN,
    "mixed": "mixed_token",
    "unseen": "unseen_token",
}


class Cell(NamedTuple):
    """One question set in one variant: "forget", or a retain set by its name."""

    question_set: str
    variant: str = ORIGINAL
    position: str | None = None


class Slice(NamedTuple):
    """The forget set, or all retain sets pooled, in one variant."""

    kind: Literal["forget", "retain"]
    variant: str = ORIGINAL
    position: str | None = None


FORGET, RETAIN = Slice("forget"), Slice("retain")


def slices_at(positions: Iterable[str]) -> tuple[Slice, ...]:
    """The sets as they are, and the retain sets with each token at each position."""
    tokens = (CONTROL_TOKEN, FORGET_TOKEN)
    return (FORGET, RETAIN, *(Slice("retain", t, place) for place in positions for t in tokens))


@dataclass(frozen=True)
class Answer:
    """Whether a question was answered correctly, and the log-probabilities behind it.

    `logprob`: of the right choice among the choices (nats). `logprobs`: of each choice, summing to
    1 in probability; empty where an earlier version did not keep them. `asked`: the prompt's text,
    the choices and the number of the right one, where texts are kept.
    """

    correct: bool
    logprob: float
    logprobs: tuple[float, ...] = ()
    asked: Mapping[str, Any] | None = None

    @property
    def chance(self) -> float:
        """The accuracy of guessing; answers without `logprobs` had four choices."""
        return 1 / (len(self.logprobs) or 4)


AnswerTable = Mapping[Cell, Mapping[str, Answer]]  # answers by question id


QuestionKey = tuple[str, str]  # a question set, and a question's id in it


def slice_of(cell: Cell) -> Slice:
    """The slice that a cell is part of."""
    kind = "forget" if cell.question_set == FORGET_SET else "retain"
    return Slice(kind, cell.variant, cell.position)


def pooled(table: AnswerTable, part: Slice) -> dict[QuestionKey, Answer]:
    """The answers of a slice; retain sets follow each other in their order."""
    return {
        (cell.question_set, name): answer
        for cell, answers in table.items()
        if slice_of(cell) == part
        for name, answer in answers.items()
    }


def slices(table: AnswerTable) -> list[Slice]:
    """The slices that a table has answers for, in its order."""
    return list(dict.fromkeys(map(slice_of, table)))


def positions(table: AnswerTable) -> list[str]:
    """The positions at which both a forget-token and its control token were tried."""
    tried = {(part.variant, part.position) for part in slices(table)}
    places = [p.position for p in slices(table) if p.variant == FORGET_TOKEN and p.position]
    return [place for place in places if (CONTROL_TOKEN, place) in tried]


def to_json(table: AnswerTable) -> list[dict[str, Any]]:
    """A table as JSON values: a record for each cell."""
    return [
        {**cell._asdict(), "answers": {name: _record(answer) for name, answer in answers.items()}}
        for cell, answers in table.items()
    ]


def _record(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in NUMBERS} | dict(answer.asked or {})


def from_json(cells: Sequence[Mapping[str, Any]]) -> AnswerTable:
    """The table that `to_json` wrote."""

    def answer(record: Mapping[str, Any]) -> Answer:
        asked = {name: value for name, value in record.items() if name not in NUMBERS}
        return Answer(record["correct"], record["logprob"], tuple(record["logprobs"]), asked)

    return {
        Cell(cell["question_set"], cell["variant"], cell["position"]): {
            name: answer(record) for name, record in cell["answers"].items()
        }
        for cell in cells
    }


def from_old_json(
    forms: Mapping[str, Mapping[str, Sequence[Any]]], set_of: Mapping[str, str]
) -> AnswerTable:
    """A table as version 0.1.0 wrote it: "forget", "clean", "before/control" …, by question id.

    `set_of`: the retain set of each question, which those files do not say.
    """
    table: dict[Cell, dict[str, Answer]] = {}
    for form, sheet in forms.items():
        position, _, token = form.rpartition("/")
        kind = (ORIGINAL, None) if not position else (OLD_VARIANTS.get(token, token), position)
        for name, (right, logprob, *rest) in sheet.items():
            home = FORGET_SET if form == "forget" else set_of.get(name, RETAIN_SET)
            answer = Answer(bool(right), logprob, tuple(rest[0]) if rest else ())
            table.setdefault(Cell(home, *kind), {})[name] = answer
    return table
