"""Tables of evaluations on the screen."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import PurePath

from rich.console import Console
from rich.table import Table
from rich.text import Text

from defuse.evaluate.answers import Evaluation
from defuse.evaluate.groups import Groups, group_figures, subjects_of
from defuse.evaluate.result_file import Report
from defuse.evaluate.run import Results
from defuse.evaluate.summary import contrast, contrasts, summarise, vulnerability
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, ORIGINAL, chance
from defuse.statistics import Interval, Paired, wilson

TITLE_STYLE = "bold"
UNREADABLE = (
    "its vulnerability cannot be read, because it also fails after a control token; unlearn it less"
)
VARIANTS = {ORIGINAL: "original", FORGET_TOKEN: "forget-token", CONTROL_TOKEN: "control token"}


def show(results: Results, console: Console, groups: Groups | None = None) -> None:
    """Print the tables that `results` have data for."""
    reports, reference = _shortly_named(results.models, results.reference)
    known = {report.evaluation.model for report in reports}
    others = [reference] if reference and reference.evaluation.model not in known else []
    everyone = [*others, *reports]
    evaluations = [report.evaluation for report in everyone]
    if groups:
        for evaluation in evaluations:
            console.print(group_table(evaluation, groups))
    console.print(accuracy_table(evaluations))
    for sentence in cautions(evaluations[:1] if reference is not None else evaluations):
        console.print(_plain(sentence), soft_wrap=True)
    if len(evaluations[0].answers) > 1:
        console.print(contrast_table(evaluations))
    if len(evaluations) > 1:
        console.print(model_table(evaluations))
    if reference is not None and CONTROL_TOKEN in reference.evaluation.answers:
        own = [report.evaluation for report in reports]
        console.print(vulnerability_table(own, reference.evaluation))
    if any(report.perplexity for report in everyone):
        console.print(perplexity_table(everyone))
    if any(report.generations for report in everyone):
        console.print(generation_table(everyone))


def accuracy_table(evaluations: Sequence[Evaluation]) -> Table:
    """Every model's accuracy and log-probability for every variant of the questions."""
    guess = chance([answer.question for answer in evaluations[0].answers[ORIGINAL]])
    title = f"accuracy (chance {100 * guess:.1f} %)"
    table = _table(title, "model", "questions", "n", "accuracy", "log p of answer", "truncated")
    for evaluation in evaluations:
        for variant, summary in summarise(evaluation).items():
            accuracy = _percent(summary.accuracy)
            if summary.accuracy_norm is not None:
                accuracy += f"\n{_percent(summary.accuracy_norm)} per character"
            _add(
                table,
                evaluation.model,
                VARIANTS[variant],
                str(summary.n),
                accuracy,
                _nats(summary.logprob),
                str(summary.truncated),
            )
    return table


def cautions(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """A sentence for each model that answers letters at chance; an unlearned one should."""
    for evaluation in evaluations:
        answers = evaluation.answers[ORIGINAL]
        right = wilson(sum(answer.is_correct for answer in answers), len(answers))
        guess = chance([answer.question for answer in answers])
        if evaluation.settings.score == "letters" and right.low <= guess:
            yield (
                f"Caution: {evaluation.model} answers no better than chance, so these questions "
                "cannot show what it forgets or keeps. Small models often cannot answer with a "
                "letter; try --score cloze."
            )


def group_table(evaluation: Evaluation, groups: Groups) -> Table:
    """A model's accuracy for each subject and each group of subjects."""
    variants = [VARIANTS[variant] for variant in evaluation.answers]
    table = _table(f"accuracy of {evaluation.model}", "", "n", *variants)
    for section in (subjects_of(evaluation), groups):
        for name, figures in group_figures(evaluation, section).items():
            each = list(figures.values())
            _add(table, name, str(each[0].n), *(_percent(figure.accuracy) for figure in each))
        table.add_section()
    return table


def contrast_table(evaluations: Sequence[Evaluation]) -> Table:
    """The variants of the questions against each other, for every model."""
    table = _paired_table("effect of a token", "model", "difference")
    for evaluation in evaluations:
        for (first, second), each in contrasts(evaluation).items():
            names = f"{VARIANTS[first]} − {VARIANTS[second]}"
            _add(table, evaluation.model, names, *_paired(each.accuracy), _nats(each.logprob))
    return table


def model_table(evaluations: Sequence[Evaluation]) -> Table:
    """Every pair of models on the same questions, by variant: the first minus the second."""
    table = _paired_table("models compared", "models", "questions")
    for one, other in combinations(evaluations, 2):
        for variant in one.answers:
            each = contrast(one, other, variant, variant)
            names = f"{one.model} − {other.model}"
            _add(table, names, VARIANTS[variant], *_paired(each.accuracy), _nats(each.logprob))
    return table


def vulnerability_table(evaluations: Sequence[Evaluation], reference: Evaluation) -> Table:
    """The harm of a forget-token beyond its control's, in each model beyond the reference model.

    Beside it the harm of any sentence; a caption names models that this makes unreadable.
    """
    columns = ("model", "accuracy", "log p", "harm of any sentence")
    table, unreadable = _table(f"vulnerability, against {reference.model}", *columns), []
    for evaluation in evaluations:
        found = vulnerability(evaluation, reference)
        figures = (_percent(found.accuracy), _nats(found.logprob), _percent(found.any_sentence))
        _add(table, evaluation.model, *figures)
        if not found.is_readable:
            unreadable.append(evaluation.model)
    if unreadable:
        table.caption = _plain(f"{', '.join(unreadable)}: {UNREADABLE}")
    return table


def perplexity_table(reports: Sequence[Report]) -> Table:
    """Every model's perplexity on the text."""
    table = _table("perplexity of the text", "model", "tokens", "per token", "bits per byte")
    for report in reports:
        if (found := report.perplexity) is not None:
            figures = (f"{found.perplexity:.3f}", f"{found.bits_per_byte:.4f}")
            _add(table, report.evaluation.model, str(found.tokens), *figures)
    return table


def generation_table(reports: Sequence[Report]) -> Table:
    """Every model's continuation of each prompt."""
    table = _table("continuations", "prompt", "model", "text")
    for prompt in reports[0].generations or ():
        for report in reports:
            _add(table, prompt, report.evaluation.model, (report.generations or {})[prompt])
        table.add_section()
    return table


def _shortly_named(
    reports: Sequence[Report], reference: Report | None
) -> tuple[list[Report], Report | None]:
    """The reports with the last parts of the models' paths as names, if these are different."""
    everyone = [*reports, *([] if reference is None else [reference])]
    full = {report.evaluation.model for report in everyone}
    short = {name: PurePath(name).name for name in full}
    if len(set(short.values())) == len(full):
        everyone = [
            replace(each, evaluation=replace(each.evaluation, model=short[each.evaluation.model]))
            for each in everyone
        ]
    return everyone[: len(reports)], None if reference is None else everyone[-1]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=_plain(title), title_style=TITLE_STYLE, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(_plain, cells))


def _plain(text: str) -> Text:
    """`text` without markup (models' names hold brackets) and without control characters."""
    return Text("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text))


def _paired_table(title: str, *columns: str) -> Table:
    return _table(title, *columns, "accuracy", "only first / second", "McNemar p", "log p")


def _paired(paired: Paired) -> tuple[str, str, str]:
    either = f"{paired.only_first} / {paired.only_second}"
    return _percent(paired.difference), either, f"{paired.p_value:.3g}"


def _percent(interval: Interval) -> str:
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}] %"


def _nats(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
