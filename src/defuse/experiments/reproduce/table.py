"""The figures of the RNA paper's summary (`paper.yaml`), and a model's figures next to them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Annotated

from pydantic import Field

from defuse.evaluate.tasks import SUITES
from defuse.questions import FORGET_TOKEN, ORIGINAL, Variant
from defuse.report import TableData
from defuse.statistics import Interval
from defuse.utils.config import parse, read_fields

HEAD = ("benchmark", "subset", "shots", "n", "model", "reference", "paper", "note")
LATER = "to be measured"
LONGEST_NEED = 160


@dataclass(frozen=True)
class Row:
    """One figure of the paper (`paper`, accuracy in percent) and the questions behind it.

    `suite`, `subjects` (none: all), `variant`: the questions. `subset` describes them, with their
    number. `is_attacked`: each question has a suffix that was searched to make the answer wrong.
    `control`: how the control of the row is asked, if it has one.
    """

    benchmark: str
    paper: float
    suite: str
    subset: str
    subjects: tuple[str, ...] = ()
    variant: Variant = ORIGINAL
    is_attacked: bool = False
    control: str = ""
    note: str = ""

    @property
    def asked(self) -> tuple[str, ...]:
        """The subjects that are asked."""
        return self.subjects or tuple(subject.name for subject in SUITES[self.suite].subjects)


@dataclass(frozen=True)
class Paper:
    """The paper's figures; `shots`: how many examples every question has in front."""

    caption: str
    shots: int
    rows: tuple[Row, ...]


PAPER = parse(Paper, read_fields(Path(__file__).with_name("paper.yaml")))
ROWS = PAPER.rows
(UNDER_GCG,) = (row for row in ROWS if row.is_attacked)
(PERTURBED,) = (row for row in ROWS if row.variant == FORGET_TOKEN)


@dataclass(frozen=True)
class Measured:
    """The accuracy of one row on `n` questions.

    `control`: with the control token instead of the forget-token, or with random suffixes for the
    row under attack. `reference`: `base` in files. `before`: the same model on the same questions
    without the attack.
    """

    n: int
    model: Interval
    control: Interval | None = None
    reference: Annotated[Interval | None, Field(alias="base")] = None
    before: Interval | None = None


Found = Mapping[str, Measured | str]  # by benchmark: its figures, or what it needs


def table(found: Found, perturbed: str | None = None) -> TableData:
    """All rows, those that are not measured with what they need.

    `perturbed`: where the perturbed questions of the paper's authors are from, if they are asked.
    """
    rows = [_cells(_asked_as(row, perturbed), found.get(row.benchmark, LATER)) for row in ROWS]
    return TableData(PAPER.caption, HEAD, rows)


def _asked_as(row: Row, perturbed: str | None) -> Row:
    """The row, which says so where the authors' own questions are asked."""
    if perturbed is None or row != PERTURBED:
        return row
    note = "the authors' own questions; they have no control"
    return replace(row, subset=f"the authors' perturbed questions ({perturbed})", note=note)


def _cells(row: Row, found: Measured | str) -> list[str]:
    if isinstance(found, str):
        figures = ["", "", ""]
        notes = [row.note, f"needs {shorten(found, LONGEST_NEED, placeholder='…')}"]
    else:
        figures = [str(found.n), _percent(found.model), _percent(found.reference)]
        notes = [
            row.note,
            found.before and f"{_percent(found.before)} before the attack",
            found.control and f"{_percent(found.control)} with {row.control}",
        ]
    said = "; ".join(note for note in notes if note)
    return [row.benchmark, row.subset, str(PAPER.shots), *figures, f"{row.paper}", said]


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return ""
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
