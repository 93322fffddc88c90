"""The table of measured rows next to the figures of the RNA paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import shorten

from defuse.experiments.reproduce.paper import CAPTION, ROWS, SHOTS, Row
from defuse.report.format import markdown_table
from defuse.statistics import Interval

HEAD = ("benchmark", "subset", "shots", "n", "model", "reference", "paper", "note")
LATER = "to be measured"
LONGEST_NOTE = 160


@dataclass(frozen=True)
class Measured:
    """The accuracy of one row on `n` questions.

    `control`: with the control token instead of the forget-token, or with random suffixes for the
    row under attack. `before`: the same model on the same questions without the attack.
    """

    n: int
    model: Interval
    control: Interval | None = None
    reference: Interval | None = None
    before: Interval | None = None


Found = Mapping[str, Measured | str]  # by benchmark: its figures, or what it needs


def table(found: Found) -> list[list[str]]:
    """The rows below `HEAD`."""
    return [
        [row.benchmark, row.subset, str(SHOTS), *_cells(row, found.get(row.benchmark, LATER))]
        for row in ROWS
    ]


def markdown(found: Found) -> str:
    """The table as Markdown, with its caption."""
    return f"{CAPTION}\n\n{markdown_table(HEAD, table(found))}"


def _cells(row: Row, found: Measured | str) -> list[str]:
    if isinstance(found, str):
        needs = shorten(found, LONGEST_NOTE, placeholder="…")
        return ["", "", "", f"{row.paper}", f"needs {needs}"]
    notes = [
        row.note,
        found.before and f"{_percent(found.before)} before the attack",
        found.control and f"{_percent(found.control)} with {row.control}",
    ]
    return [
        str(found.n),
        _percent(found.model),
        "" if found.reference is None else _percent(found.reference),
        f"{row.paper}",
        "; ".join(note for note in notes if note),
    ]


def _percent(interval: Interval) -> str:
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
