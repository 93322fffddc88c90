"""Figures of a run, and of the runs of one setting; which settings no other outdoes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from defuse.evaluate import Interval
from defuse.experiments.core.answers import CLEAN, FORGET, Answers
from defuse.experiments.core.metrics import LOGPROB, RIGHT, accuracy, shared_ids, vulnerability
from defuse.report.format import interval, markdown_table, stacked

HEADS = {
    "forget_accuracy": "forget questions",
    "retain_accuracy": "retain questions",
    "after_control_accuracy": "... after a control",
    "after_forget_accuracy": "... after a forget-token",
    "vulnerability": "vulnerability",
    "vulnerability_nats": "vulnerability, nats",
}
ON_SCREEN = {
    "forget_accuracy": "forget\nquestions",
    "retain_accuracy": "retain\nquestions",
    "after_control_accuracy": "... after\na control",
    "after_forget_accuracy": "... after\na forget-\ntoken",
    "vulnerability": "vulner-\nability",
}


@dataclass(frozen=True)
class Figure:
    """An estimate over `n` questions."""

    n: int
    interval: Interval

    def as_data(self) -> dict[str, float]:
        return {"n": self.n, **asdict(self.interval)}


@dataclass(frozen=True)
class Group:
    """The runs of one setting, which differ in their seed; figures by the names in `HEADS`."""

    label: str
    runs: int
    figures: Mapping[str, Figure]

    def value(self, name: str) -> float:
        return self.figures[name].interval.value


def figures(runs: Sequence[Answers], base: Answers) -> dict[str, Figure]:
    """Accuracies, and with perturbed questions the vulnerability (unless `runs` is the base).

    Of one run with Wilson's interval, of several with one over runs and questions.
    """
    ids = {form: shared_ids(form, runs, base) for form in base}

    def share(form: str) -> Figure:
        return Figure(len(ids[form]), accuracy(form, runs, ids[form]))

    found = {"forget_accuracy": share(FORGET), "retain_accuracy": share(CLEAN)}
    position = next((form.partition("/")[0] for form in base if "/" in form), None)
    if position is None:
        return found
    found["after_control_accuracy"] = share(f"{position}/control")
    found["after_forget_accuracy"] = share(f"{position}/forget")
    if any(answers is not base for answers in runs):
        kept = ids[CLEAN]
        for name, what in (("vulnerability", RIGHT), ("vulnerability_nats", LOGPROB)):
            found[name] = Figure(len(kept), vulnerability(position, runs, base, kept, what))
    return found


def make_groups(runs: Sequence[tuple[str, Answers]], base: Answers) -> list[Group]:
    """The base model, then every setting of `runs` (setting, answers) in their order."""
    settings: dict[str, list[Answers]] = {}
    for setting, answers in runs:
        settings.setdefault(setting, []).append(answers)
    groups = [Group(name, len(each), figures(each, base)) for name, each in settings.items()]
    return [Group("base", 1, figures([base], base)), *groups]


def pareto_front(groups: Sequence[Group], kept: str) -> list[Group]:
    """The groups that no other outdoes: in one of forgetting and keeping better, in none worse.

    `kept` names the figure that should be high; "forget_accuracy" should be low. From the group
    that forgot most to the one that kept most.
    """
    places = {id(group): (group.value("forget_accuracy"), -group.value(kept)) for group in groups}

    def outdone(group: Group) -> bool:
        here = places[id(group)]
        return any(
            all(a <= b for a, b in zip(other, here, strict=True)) and other != here
            for other in places.values()
        )

    front = [group for group in groups if not outdone(group)]
    return sorted(front, key=lambda group: places[id(group)])


def screen_table(groups: Sequence[Group]) -> Table:
    """What fits a terminal: intervals below their estimates."""
    names = [name for name in _named(groups) if name in ON_SCREEN]
    heads = ["accuracy", "runs", *(ON_SCREEN[name] for name in names)]
    table = Table(*heads, title="with 95 % intervals; chance 0.25", box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    for group in groups:
        values = [stacked(_interval(group, name)) for name in names]
        table.add_row(group.label.replace(" ", "\n"), str(group.runs), *values)
    return table


def markdown(groups: Sequence[Group]) -> str:
    """The same for a page, with the number of questions."""
    names = _named(groups)
    counts = {name: next(g.figures[name].n for g in groups if name in g.figures) for name in names}
    heads = [f"{HEADS[name]} (n={counts[name]})" for name in names]
    rows = [
        [group.label, str(group.runs), *(interval(_interval(group, name)) for name in names)]
        for group in groups
    ]
    return markdown_table(["", "runs", *heads], rows)


def _named(groups: Sequence[Group]) -> list[str]:
    return [name for name in HEADS if any(name in group.figures for group in groups)]


def _interval(group: Group, name: str) -> Interval | None:
    return group.figures[name].interval if name in group.figures else None
