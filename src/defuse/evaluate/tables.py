"""Evaluations side by side on the screen."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import PurePath

from rich.console import Console
from rich.table import Table

from defuse.evaluate.answers import Evaluation
from defuse.evaluate.groups import Groups, group_figures, subjects_of
from defuse.evaluate.summary import Vulnerability, contrast, contrasts, summarise, vulnerability
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, ORIGINAL
from defuse.statistics import Interval, Paired

TITLE_STYLE = "bold"
VARIANTS = {ORIGINAL: "original", FORGET_TOKEN: "forget-token", CONTROL_TOKEN: "control token"}


def show(
    evaluations: Sequence[Evaluation],
    base: Evaluation | None,
    console: Console,
    groups: Groups | None = None,
) -> None:
    """Print the tables that `evaluations`, of the same questions, have something for."""
    known = {evaluation.model for evaluation in evaluations}
    others = [base] if base is not None and base.model not in known else []
    everyone = _shortly_named([*others, *evaluations])
    if groups:
        for evaluation in everyone:
            console.print(group_table(evaluation, groups))
    console.print(accuracy_table(everyone))
    if len(everyone[0].answers) > 1:
        console.print(contrast_table(everyone))
    if len(everyone) > 1:
        console.print(model_table(everyone))
    if base is not None:
        console.print(vulnerability_table(everyone[len(others) :], base))


def accuracy_table(evaluations: Sequence[Evaluation]) -> Table:
    """Every model's figures for every form of the questions."""
    table = _table("accuracy", "model", "questions", "n", "accuracy", "log p of answer", "cut")
    for evaluation in evaluations:
        for variant, summary in summarise(evaluation).items():
            accuracy = _percent(summary.accuracy)
            if summary.accuracy_norm is not None:
                accuracy += f"\n{_percent(summary.accuracy_norm)} per character"
            table.add_row(
                evaluation.model,
                VARIANTS[variant],
                str(summary.n),
                accuracy,
                _nats(summary.logprob),
                str(summary.truncated),
            )
    return table


def group_table(evaluation: Evaluation, groups: Groups) -> Table:
    """A model's accuracy by subject, and over each group of them."""
    forms = [VARIANTS[variant] for variant in evaluation.answers]
    table = _table(f"accuracy of {evaluation.model}", "", "n", *forms)
    for section in (subjects_of(evaluation), groups):
        for name, figures in group_figures(evaluation, section).items():
            each = list(figures.values())
            table.add_row(name, str(each[0].n), *(_percent(figure.accuracy) for figure in each))
        table.add_section()
    return table


def contrast_table(evaluations: Sequence[Evaluation]) -> Table:
    """The variants of the questions against each other, for every model."""
    table = _paired_table("what a token changes", "model", "difference")
    for evaluation in evaluations:
        for (first, second), each in contrasts(evaluation).items():
            names = f"{VARIANTS[first]} − {VARIANTS[second]}"
            table.add_row(evaluation.model, names, *_paired(each.accuracy), _nats(each.logprob))
    return table


def model_table(evaluations: Sequence[Evaluation]) -> Table:
    """Each two models on the same questions, form by form: the first minus the second."""
    table = _paired_table("models compared", "models", "questions")
    for one, other in combinations(evaluations, 2):
        for variant in one.answers:
            each = contrast(one, other, variant, variant)
            names = f"{one.model} − {other.model}"
            table.add_row(names, VARIANTS[variant], *_paired(each.accuracy), _nats(each.logprob))
    return table


def vulnerability_table(evaluations: Sequence[Evaluation], base: Evaluation) -> Table:
    """What unlearning added to the harm of a forget-token beyond its control's."""
    table = _table("vulnerability against " + base.model, "model", "accuracy", "log p")
    for evaluation in evaluations:
        found: Vulnerability = vulnerability(evaluation, base)
        table.add_row(evaluation.model, _percent(found.accuracy), _nats(found.logprob))
    return table


def _shortly_named(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Models by the last part of their paths, where that tells them apart."""
    names = [PurePath(evaluation.model).name for evaluation in evaluations]
    if len(set(names)) < len(names):
        return list(evaluations)
    return [replace(each, model=name) for each, name in zip(evaluations, names, strict=True)]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_style=TITLE_STYLE, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


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
