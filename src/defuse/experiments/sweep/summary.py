"""Figures of a sweep's settings, and which settings are on the Pareto front."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.table import Table

from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_TOKEN,
    RETAIN,
    AnswerTable,
    Slice,
)
from defuse.experiments.core.metrics import Group, make_group
from defuse.report.format import interval, markdown_table, stacked
from defuse.statistics import Interval

HEADS = {
    "forget_accuracy": "forget questions",
    "retain_accuracy": "retain questions",
    "after_control_accuracy": "... after a control token",
    "after_forget_accuracy": "... after a forget-token",
    "vulnerability": "vulnerability",
    "vulnerability_nats": "vulnerability, nats",
}
WIDE = "vulnerability_nats"  # not on the screen


def figures(group: Group) -> dict[str, tuple[int, Interval]]:
    """The figures of `HEADS` that a group has, each with its number of questions."""
    found: dict[str, tuple[int, Interval]] = {}
    position = next((part.position for part in group.accuracy if part.position), None)
    slices = {"forget_accuracy": FORGET, "retain_accuracy": RETAIN}
    if position is not None:
        slices["after_control_accuracy"] = Slice("retain", CONTROL_TOKEN, position)
        slices["after_forget_accuracy"] = Slice("retain", FORGET_TOKEN, position)
    for name, part in slices.items():
        found[name] = group.n[part], group.accuracy[part]
    for effects in group.vulnerability.values():
        found["vulnerability"], found["vulnerability_nats"] = (
            (group.n[RETAIN], effect) for effect in effects
        )
    return found


def as_data(group: Group) -> dict[str, dict[str, float]]:
    """The figures as JSON values."""
    return {name: {"n": n, **asdict(found)} for name, (n, found) in figures(group).items()}


def make_groups(runs: Sequence[tuple[str, AnswerTable]], reference: AnswerTable) -> list[Group]:
    """The reference model, then every setting of `runs` (setting, answers) in their order."""
    settings: dict[str, list[AnswerTable]] = {}
    for setting, answers in runs:
        settings.setdefault(setting, []).append(answers)
    groups = [make_group(name, "none", each, reference) for name, each in settings.items()]
    return [make_group("reference", "", [reference], reference), *groups]


def value(group: Group, name: str) -> float:
    """A figure's estimate."""
    return figures(group)[name][1].value


def pareto_front(groups: Sequence[Group], kept: str) -> list[Group]:
    """The groups that no other dominates: better in forgetting or keeping, worse in none.

    `kept` names the figure that should be high; "forget_accuracy" should be low. From the group
    that forgot most to the one that kept most.
    """
    places = {id(each): (value(each, "forget_accuracy"), -value(each, kept)) for each in groups}

    def is_dominated(group: Group) -> bool:
        here = places[id(group)]
        return any(
            all(a <= b for a, b in zip(other, here, strict=True)) and other != here
            for other in places.values()
        )

    front = [group for group in groups if not is_dominated(group)]
    return sorted(front, key=lambda group: places[id(group)])


def screen_table(groups: Sequence[Group]) -> Table:
    """What fits a terminal: intervals below their estimates."""
    names = [name for name in _named(groups) if name != WIDE]
    heads = [HEADS[name].replace(" ", "\n", 1) for name in names]
    table = Table("accuracy", "runs", *heads, title="with 95 % intervals", box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    for group in groups:
        cells = [stacked(_interval(group, name)) for name in names]
        table.add_row(group.label.replace(" ", "\n"), str(group.runs), *cells)
    return table


def markdown(groups: Sequence[Group]) -> str:
    """The same for a page, with the number of questions."""
    names = _named(groups)
    counts: Mapping[str, int] = {
        name: next(figures(g)[name][0] for g in groups if name in figures(g)) for name in names
    }
    heads = [f"{HEADS[name]} (n={counts[name]})" for name in names]
    rows = [
        [group.label, str(group.runs), *(interval(_interval(group, name)) for name in names)]
        for group in groups
    ]
    return markdown_table(["", "runs", *heads], rows)


def _named(groups: Sequence[Group]) -> list[str]:
    return [name for name in HEADS if any(name in figures(group) for group in groups)]


def _interval(group: Group, name: str) -> Interval | None:
    return figures(group).get(name, (0, None))[1]
