"""The experiment's table, as data, as Markdown and for the screen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from defuse.evaluate.tasks.tofu import figures as suite_figures
from defuse.evaluate.tasks.tofu.data import RETAIN
from defuse.evaluate.tasks.tofu.figures import Figures, figure_cells, summarise
from defuse.evaluate.tasks.tofu.names import added_harm, any_name_harm, name_harm
from defuse.evaluate.tasks.tofu.part import TofuAnswers
from defuse.experiments.tofu.recipe import PRETRAINED, REFERENCE, RETRAINED, TofuRecipe
from defuse.report import TableData
from defuse.report.format import interval, markdown_table, stacked
from defuse.statistics import Interval

LABELS = {
    PRETRAINED: "pretrained",
    REFERENCE: "reference: taught all",
    RETRAINED: "retrained: taught the retain set alone",
}
HARM = ("a forgotten name's harm, nats", "added by unlearning", "harm of any name")
COLUMNS = ("model", "runs", *suite_figures.COLUMNS, *HARM)
ON_SCREEN = (0, 2, 5, 6, 9, 11)  # the columns that fit a terminal


@dataclass(frozen=True)
class Row:
    """One model, over seeds. `harm`, `added`: of a forgotten name before a retain question.

    `any_name`: what unlearning adds to the harm of a control name; above 0, `added` says nothing.
    """

    label: str
    figures: Figures
    harm: Interval
    added: Interval | None
    any_name: Interval | None = None


def make_rows(
    recipe: TofuRecipe, answers: Mapping[tuple[str, int | None], TofuAnswers]
) -> list[Row]:
    """The pretrained and the reference model, the unlearned ones, and the retrained model.

    `answers`: by the model's name and seed, which the pretrained model has not. A model has a row
    as soon as one of its seeds has answers. What compares it with another model is there if that
    one has answers for the same seeds.
    """
    known: dict[str, dict[int, TofuAnswers]] = {}
    for (name, seed), own in answers.items():
        seeds = recipe.seeds if seed is None else [seed]
        known.setdefault(name, {}).update(dict.fromkeys(seeds, own))
    names = (PRETRAINED, REFERENCE, *recipe.defences, RETRAINED)
    return [_row(name, known) for name in names if name in known]


def _row(name: str, known: Mapping[str, Mapping[int, TofuAnswers]]) -> Row:
    def of(other: str) -> list[TofuAnswers]:
        """The answers of a model for all seeds of this one, or none."""
        found = known.get(other, {})
        return [found[seed] for seed in known[name]] if found.keys() >= known[name].keys() else []

    own = of(name)
    retrained = of(RETRAINED) if name != RETRAINED else []
    reference = of(REFERENCE) if name not in LABELS else []
    names, theirs = ([each.names for each in some] for some in (own, reference))
    plain, their_plain = (
        [[each.logprob for each in run.sets[RETAIN]] for run in some] for some in (own, reference)
    )
    return Row(
        LABELS.get(name, f"unlearned: {name}"),
        summarise([each.sets for each in own], [each.sets for each in retrained]),
        name_harm(names),
        added_harm(names, theirs) if reference else None,
        any_name_harm(names, plain, theirs, their_plain) if reference else None,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table for a page, and the number of questions."""
    counts = ", ".join(f"{name} {each.n}" for name, each in rows[0].figures.sets.items())
    table = markdown_table(COLUMNS, (_cells(row, interval) for row in rows))
    said = "".join(f"\n- {sentence}\n" for sentence in unreadable_sentences(rows))
    return f"{table}\nQuestions: {counts}.\n{said}"


def unreadable_sentences(rows: Sequence[Row]) -> Iterator[str]:
    """The models that any name harms, so that a forgotten one's harm says nothing."""
    for row in rows:
        if row.any_name is not None and row.any_name.low > 0:
            yield (
                f"{row.label}: what unlearning adds to a forgotten name's harm cannot be read, "
                "because any name does harm; unlearn it less."
            )


def on_screen(rows: Sequence[Row]) -> TableData:
    """The columns that fit a terminal, with intervals below their estimates."""
    whole = (COLUMNS, *(_cells(row, stacked) for row in rows))
    head, *cells = ([row[place] for place in ON_SCREEN] for row in whole)
    return TableData("with 95 % intervals", head, cells)


def _cells(row: Row, show: Callable[[Interval | None], str]) -> list[str]:
    figures = figure_cells(row.figures, show)
    harms = map(show, (row.harm, row.added, row.any_name))
    return [row.label, str(row.figures.runs), *figures, *harms]
