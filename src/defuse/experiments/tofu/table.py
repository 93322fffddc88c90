"""The whole way's table, as Markdown, for the screen and as data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from defuse.evaluate import Interval
from defuse.experiments.tofu.data import FORGET, RETAIN
from defuse.experiments.tofu.metrics import ForgetQuality
from defuse.experiments.tofu.recipe import BASE, FULL, GOLD, WholeWay
from defuse.experiments.tofu.store import Sheet
from defuse.experiments.tofu.summary import Figures, name_effect, name_harm, summarise
from defuse.report.format import interval, markdown_table, stacked

LABELS = {BASE: "base", FULL: "taught all", GOLD: "gold: taught the retain part alone"}
COLUMNS = (
    "model",
    "runs",
    "forget: P",
    "ROUGE-L",
    "truth ratio",
    "forget quality (p)",
    "retain: P",
    "ROUGE-L",
    "truth ratio",
    "model utility",
    "a forgotten name's harm, nats",
    "added by unlearning",
)


@dataclass(frozen=True)
class Row:
    """One model, over seeds. `harm`, `added`: of a forgotten name before a kept question."""

    label: str
    figures: Figures
    harm: Interval
    added: Interval | None


def make_rows(recipe: WholeWay, sheets: Mapping[tuple[str, int], Sheet]) -> list[Row]:
    """The base model, the one taught all, the arms, and the gold standard."""

    def runs(name: str) -> list[Sheet]:
        return [sheets[name, seed] for seed in recipe.seeds]

    def row(name: str) -> Row:
        gold = [sheet.sets for sheet in runs(GOLD)] if name != GOLD else []
        own = runs(name)
        behind = [sheet.names for sheet in own]
        added = None
        if name in recipe.arms:
            added = name_effect(behind, [sheet.names for sheet in runs(FULL)])
        figures = summarise([sheet.sets for sheet in own], gold)
        return Row(LABELS.get(name, f"unlearned: {name}"), figures, name_harm(behind), added)

    return [row(name) for name in (BASE, FULL, *recipe.arms, GOLD)]


def markdown(rows: Sequence[Row]) -> str:
    """The table for a page, and how many questions stand behind it."""
    counts = ", ".join(f"{name} {each.n}" for name, each in rows[0].figures.sets.items())
    table = markdown_table(COLUMNS, (_cells(row, interval) for row in rows))
    return f"{table}\nQuestions: {counts}.\n"


def screen_table(rows: Sequence[Row]) -> Table:
    """What fits a terminal: intervals below their estimates."""
    shown = (0, 2, 5, 6, 9, 11)
    table = Table(*(COLUMNS[place] for place in shown), box=SIMPLE_HEAD)
    for row in rows:
        cells = _cells(row, stacked)
        table.add_row(*(cells[place] for place in shown))
    return table


def figures_table(found: Mapping[str, Figures]) -> Table:
    """Models asked by themselves, for a terminal."""
    names = ("model", *COLUMNS[2:10])
    table = Table(*names, box=SIMPLE_HEAD)
    for name, figures in found.items():
        table.add_row(name, *_figure_cells(figures, stacked))
    return table


def as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [asdict(row) for row in rows]


def _cells(row: Row, say: Any) -> list[str]:  # noqa: ANN401 (a way to say an interval)
    figures = _figure_cells(row.figures, say)
    return [row.label, str(row.figures.runs), *figures, say(row.harm), say(row.added)]


def _figure_cells(figures: Figures, say: Any) -> list[str]:  # noqa: ANN401
    forget, retain = figures.sets[FORGET], figures.sets[RETAIN]
    return [
        *map(say, (forget.probability, forget.rouge, forget.truth)),
        _quality(figures.quality),
        *map(say, (retain.probability, retain.rouge, retain.truth)),
        say(figures.utility),
    ]


def _quality(tests: Sequence[ForgetQuality]) -> str:
    """The median p-value over seeds."""
    return f"{median(test.p_value for test in tests):.2g}" if tests else ""
