"""Figures in words and table cells, and a table in every form it is written in."""

import csv
import io
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from defuse.report import TableData
from defuse.statistics import Interval


def interval(value: Interval | None, places: int = 2) -> str:
    """An estimate with its 95 % interval."""
    if value is None:
        return ""
    return "{} [{}, {}]".format(
        *(_rounded(each, places) for each in (value.value, value.low, value.high))
    )


def _rounded(value: float, places: int) -> str:
    """So many places, and no sign before nothing."""
    return f"{round(value, places) + 0.0:.{places}f}"


def stacked(value: Interval | None) -> str:
    """The same in two lines."""
    return "" if value is None else f"{value.value:.2f}\n{value.low:.2f}…{value.high:.2f}"


def of_columns(caption: str, columns: Iterable[Sequence[str]]) -> TableData:
    """A table from its columns, each with its head first."""
    head, *rows = zip(*columns, strict=True)
    return TableData(caption, head, rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a page of documentation."""
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *escaped]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def captioned(table: TableData) -> str:
    """The same behind its caption."""
    return f"{table.caption}:\n\n{markdown_table(table.head, table.rows)}"


def as_csv(table: TableData) -> str:
    """The same as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.head, *table.rows])
    return text.getvalue()


LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}"})


def as_latex(table: TableData) -> str:
    """The same as a LaTeX tabular with booktabs rules."""
    head, *lines = (
        " & ".join(cell.translate(LATEX) for cell in row) + r" \\"
        for row in (table.head, *table.rows)
    )
    begin = rf"\begin{{tabular}}{{{'l' * len(table.head)}}}"
    rules = [begin, r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(rules) + "\n"


def screen_table(table: TableData) -> Table:
    """The same for a terminal, with its caption above; brackets in cells are no markup."""
    shown = Table(title=table.caption, box=SIMPLE_HEAD)
    for name in table.head:
        shown.add_column(name, overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
