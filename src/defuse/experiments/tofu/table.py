"""The experiment's table, as Markdown, for the screen and as data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from defuse.evaluate.tasks.tofu import figures as suite_figures
from defuse.evaluate.tasks.tofu.figures import Figures, figure_cells, summarise
from defuse.evaluate.tasks.tofu.names import added_harm, name_harm
from defuse.experiments.tofu.recipe import PRETRAINED, REFERENCE, RETRAINED, TofuRecipe
from defuse.experiments.tofu.stages import Answers, Stage
from defuse.report.format import interval, markdown_table, stacked
from defuse.statistics import Interval

LABELS = {
    PRETRAINED: "pretrained",
    REFERENCE: "reference: taught all",
    RETRAINED: "retrained: taught the retain set alone",
}
COLUMNS = (
    "model",
    "runs",
    *suite_figures.COLUMNS,
    "a forgotten name's harm, nats",
    "added by unlearning",
)


@dataclass(frozen=True)
class Row:
    """One model, over seeds. `harm`, `added`: of a forgotten name before a retain question."""

    label: str
    figures: Figures
    harm: Interval
    added: Interval | None


def make_rows(recipe: TofuRecipe, answers: Mapping[Stage, Answers]) -> list[Row]:
    """The pretrained and the reference model, the unlearned ones, and the retrained model.

    A model has a row as soon as one of its seeds has answers. What compares it with another model
    is there if that one has answers for the same seeds.
    """

    def runs(name: str, seeds: Sequence[int]) -> list[Answers]:
        stages = [Stage(name, None if name == PRETRAINED else seed) for seed in seeds]
        return [answers[stage] for stage in stages] if answers.keys() >= set(stages) else []

    def row(name: str) -> Row | None:
        seeds = [seed for seed in recipe.seeds if runs(name, [seed])]
        if not seeds:
            return None
        own = runs(name, seeds)
        names = [each.names for each in own]
        retrained = runs(RETRAINED, seeds) if name != RETRAINED else []
        reference = runs(REFERENCE, seeds) if name in recipe.defences else []
        return Row(
            LABELS.get(name, f"unlearned: {name}"),
            summarise([each.sets for each in own], [each.sets for each in retrained]),
            name_harm(names),
            added_harm(names, [each.names for each in reference]) if reference else None,
        )

    found = (row(name) for name in (PRETRAINED, REFERENCE, *recipe.defences, RETRAINED))
    return [each for each in found if each is not None]


def markdown(rows: Sequence[Row]) -> str:
    """The table for a page, and the number of questions."""
    counts = ", ".join(f"{name} {each.n}" for name, each in rows[0].figures.sets.items())
    table = markdown_table(COLUMNS, (_cells(row, interval) for row in rows))
    return f"{table}\nQuestions: {counts}.\n"


def screen_table(rows: Sequence[Row]) -> Table:
    """The columns that fit a terminal, with intervals below their estimates."""
    shown = (0, 2, 5, 6, 9, 11)
    table = Table(*(COLUMNS[place] for place in shown), box=SIMPLE_HEAD)
    for row in rows:
        cells = _cells(row, stacked)
        table.add_row(*(cells[place] for place in shown))
    return table


def as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table as JSON values."""
    return [asdict(row) for row in rows]


def _cells(row: Row, show: Callable[[Interval | None], str]) -> list[str]:
    figures = figure_cells(row.figures, show)
    return [row.label, str(row.figures.runs), *figures, show(row.harm), show(row.added)]
