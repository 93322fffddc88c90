"""An experiment's tables and sentences, for the screen, Markdown, CSV, LaTeX and the page."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from textwrap import fill

from rich.box import SIMPLE_HEAD
from rich.table import Table

from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_TOKEN,
    RETAIN,
    AnswerTable,
    QuestionKey,
    Slice,
)
from defuse.experiments.core.metrics import (
    Checkpoints,
    Defence,
    Group,
    Matched,
    accuracy,
    mean,
    shared_ids,
)
from defuse.experiments.core.scenario import Layout, Run
from defuse.report import TableData
from defuse.report.format import captioned, interval, stacked
from defuse.statistics import Interval

VARIANTS = {
    FORGET_TOKEN: "forget-token",
    CONTROL_TOKEN: "control token",
    "mixed_token": "forget-token of the mixing half",
    "unseen_token": "unseen word",
}
PLACES = {"before": "after a {}", "statement": "after a statement, {}"}


def slice_name(part: Slice) -> str:
    """A slice in words: "forget set", "retain, after a forget-token"."""
    if part.position is None:
        return f"{part.kind} set"
    variant = VARIANTS.get(part.variant, part.variant)
    return "retain, " + PLACES.get(part.position, f"{{}} in the {part.position}").format(variant)


def main_table(groups: Sequence[Group], layout: Layout) -> TableData:
    """Accuracies by slice, the vulnerability at the judged position, the distance to retrained."""
    has_retrained = any(group.kl_to_retrained for group in groups)
    heads = ["model", "runs", "n", *map(slice_name, layout.slices)]
    heads += [f"vulnerability ({layout.judged})"] if layout.judged else []
    heads += ["KL to retrained, forget", "KL to retrained, retain"] if has_retrained else []
    rows = [
        [*_head(group), *map(interval, _cells(group, layout, has_retrained))] for group in groups
    ]
    caption = (
        "Accuracy after the last step, with 95 % intervals over questions and seeds; n: questions "
        "of the forget set / of the retain sets"
    )
    return TableData(caption, heads, rows)


def _head(group: Group) -> list[str]:
    counts = (group.n.get(FORGET, 0), group.n.get(RETAIN, 0))
    return [group.label, str(group.runs), "{} / {}".format(*counts)]


def _cells(group: Group, layout: Layout, has_retrained: bool) -> list[Interval | None]:
    cells = [group.accuracy.get(part) for part in layout.slices]
    if layout.judged:
        effect = group.vulnerability.get(layout.judged)
        cells.append(effect[0] if effect else None)
    if has_retrained:
        cells += [group.kl_to_retrained.get(part) for part in (FORGET, RETAIN)]
    return cells


def tables(groups: Sequence[Group], layout: Layout) -> list[TableData]:
    """The main table, every other slice, log-probabilities, and vulnerabilities by position."""
    found = [main_table(groups, layout)]
    parts = list(dict.fromkeys(part for group in groups for part in group.accuracy))
    others = [part for part in parts if part.position is not None]
    if set(others) - set(layout.slices):
        found.append(
            TableData(
                "Accuracy on the retain sets by variant and position",
                ["model", *map(slice_name, others)],
                [[g.label, *(_value(g.accuracy.get(part)) for part in others)] for g in groups],
            )
        )
    shown = [part for part in layout.slices if part in parts]
    found.append(
        TableData(
            "Log-probability of the right choice among the choices (nats)",
            ["model", *map(slice_name, shown)],
            [[g.label, *(interval(g.logprob.get(part)) for part in shown)] for g in groups],
        )
    )
    unlearned = [group for group in groups if group.vulnerability]
    places = list(dict.fromkeys(place for group in unlearned for place in group.vulnerability))
    if places:
        found.append(
            TableData(
                "Vulnerability by position, in accuracy and in nats",
                ["model", *places, *(f"{place}, nats" for place in places)],
                [[g.label, *_vulnerabilities(g, places)] for g in unlearned],
            )
        )
    return found


def _value(found: Interval | None) -> str:
    return "" if found is None else f"{found.value:.2f}"


def _vulnerabilities(group: Group, places: Sequence[str]) -> list[str]:
    effects = [group.vulnerability.get(place) for place in places]
    return [interval(effect[i] if effect else None) for i in (0, 1) for effect in effects]


def curve_table(
    finished: Mapping[Run, Checkpoints], reference: AnswerTable, layout: Layout
) -> TableData:
    """Mean accuracies after every number of steps that all runs of a group were asked at.

    On the questions that all checkpoints answered.
    """
    every = [table for steps in finished.values() for table in steps.values()]
    ids = {part: shared_ids(part, every, reference) for part in layout.slices}
    shown = [part for part in layout.slices if ids[part]]
    groups: dict[str, list[Checkpoints]] = {}
    for run, steps in finished.items():
        groups.setdefault(run.group, []).append(steps)
    rows = []
    for label, runs in groups.items():
        for step in sorted(set.intersection(*(set(steps) for steps in runs))):
            means = [
                sum(mean(steps[step], part, ids[part], "correct") for steps in runs) / len(runs)
                for part in shown
            ]
            rows.append([label, str(len(runs)), str(step), *(f"{value:.2f}" for value in means)])
    heads = ["model", "runs", "steps", *(f"{slice_name(p)} (n = {len(ids[p])})" for p in shown)]
    return TableData("Mean accuracy by step", heads, rows)


def held_out_table(
    groups: Mapping[str, Sequence[AnswerTable]],
    reference: AnswerTable,
    held_out: frozenset[QuestionKey],
    position: str,
) -> TableData:
    """Accuracy after forget-tokens that mixing used, and after those it did not.

    `held_out`: the questions behind a forget-token that is in no mixed retain text.
    """
    part = Slice("retain", FORGET_TOKEN, position)
    rows = []
    for label, runs in groups.items():
        ids = shared_ids(part, runs, reference)
        halves = ([n for n in ids if n not in held_out], [n for n in ids if n in held_out])
        cells = [
            cell
            for half in halves
            for cell in (str(len(half)), interval(accuracy(part, runs, half)) if half else "")
        ]
        rows.append([label, str(len(runs)), *cells])
    return TableData(
        "Does mixing protect from forget-tokens that it did not use?",
        ["model", "runs", "n, used", "accuracy", "n, held out", "accuracy"],
        rows,
    )


def screen_table(groups: Sequence[Group], layout: Layout) -> Table:
    """What fits a terminal: intervals below their estimates."""
    shown = [part for part in layout.slices if part.position in (None, layout.judged)]
    heads = [fill(slice_name(part), 10) for part in shown]
    heads += ["vulner-\nability"] if layout.judged else []
    table = Table(title="with 95 % intervals", box=SIMPLE_HEAD)
    table.add_column("accuracy", overflow="fold")
    for head in heads:
        table.add_column(head)
    for group in groups:
        cells = _cells(group, replace(layout, slices=tuple(shown)), has_retrained=False)
        table.add_row(fill(group.label, 12), *map(stacked, cells))
    return table


def markdown(found: Sequence[TableData], sentences: Sequence[str]) -> str:
    """Tables and sentences for a page of documentation."""
    return "\n".join(map(captioned, found)) + "".join(f"\n- {each}" for each in sentences) + "\n"


def as_csv(table: TableData) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.head, *table.rows])
    return text.getvalue()


LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}"})


def as_latex(table: TableData) -> str:
    """A table as a LaTeX tabular with booktabs rules."""
    lines = [" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in table.rows]
    head = " & ".join(cell.translate(LATEX) for cell in table.head) + r" \\"
    columns = "l" * len(table.head)
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}"]) + "\n"


def defence_sentences(defences: Sequence[Defence]) -> Iterator[str]:
    """What each defence changes, at the last step and at matched forgetting."""
    for defence in defences:
        if defence.recovered:
            gains = ", ".join(f"{place} {interval(g)}" for place, g in defence.recovered.items())
            yield (
                f"{defence.label} against {defence.against}: change of the accuracy after a "
                f"forget-token at the last step, by position: {gains}."
            )
        for position, matched in defence.matched.items():
            yield f"{defence.label}, {position}: {matched_sentence(matched)}"


def short_sentences(defences: Sequence[Defence], position: str | None) -> Iterator[str]:
    """What each defence changes at one position, in one line."""
    for defence in defences:
        if position is not None and position in defence.recovered:
            matched = defence.matched.get(position)
            alike = "no such checkpoints" if matched is None else interval(matched.accuracy)
            yield (
                f"{defence.label}: changes the accuracy after a forget-token by "
                f"{interval(defence.recovered[position])} at the last step, and by {alike} at "
                "matched forgetting."
            )


def matched_sentence(matched: Matched | None) -> str:
    """What `match` found, in words."""
    if matched is None:
        return "no checkpoints with and without the defence are at matched forgetting."
    pairs = len(matched.steps)
    return (
        f"at matched forgetting ({pairs} pair{'s' * (pairs > 1)} of checkpoints, {matched.n} "
        f"questions) the accuracy after a forget-token changes by {interval(matched.accuracy)}, "
        f"the log-probability of the right choice by {interval(matched.logprob)} nats."
    )
