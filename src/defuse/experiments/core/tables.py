"""An experiment's tables and sentences."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from statistics import fmean
from textwrap import fill

import torch

from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_TOKEN,
    RETAIN,
    QuestionKey,
    Slice,
)
from defuse.experiments.core.check_up import Perplexities
from defuse.experiments.core.defences import Defence, Matched
from defuse.experiments.core.metrics import (
    Answers,
    Group,
    Means,
    late_answers,
    make_means,
    panel,
    run_means,
)
from defuse.experiments.core.scenario import Layout, Scenario
from defuse.few_seeds import SeededMean, seeded_means
from defuse.report import TableData
from defuse.report.format import interval, of_columns, stacked
from defuse.statistics import Interval

Show = Callable[[Interval | None], str]
VARIANTS = {
    FORGET_TOKEN: "forget-token",
    CONTROL_TOKEN: "control token",
    "mixed_token": "forget-token of the mixing half",
    "unseen_token": "unseen word",
}
CAPTION = (
    "Accuracy, the mean over the checkpoints of the last quarter of the steps, with 95 % "
    "intervals over questions and seeds; n: questions of the forget set / of the retain sets"
)
UNREADABLE = (
    "A vulnerability cannot be read where the harm of any sentence is above 0: that model fails "
    "after a control token, too"
)
PLACES = {"before": "after a {}", "statement": "after a statement, {}"}


def slice_name(part: Slice) -> str:
    """A slice in words: "forget set", "retain, after a forget-token"."""
    if part.position is None:
        return f"{part.kind} set"
    variant = VARIANTS.get(part.variant, part.variant)
    return "retain, " + PLACES.get(part.position, f"{{}} in the {part.position}").format(variant)


def main_table(
    groups: Sequence[Group], layout: Layout, perplexities: Perplexities | None = None
) -> TableData:
    """Accuracies by slice, the vulnerability at the judged position, the distance to retrained.

    `perplexities`: of neutral text, before and after.
    """
    counts = [f"{group.n.get(FORGET, 0)} / {group.n.get(RETAIN, 0)}" for group in groups]
    columns = [
        _labels(groups),
        ["runs", *(str(group.runs) for group in groups)],
        ["n", *counts],
        *_accuracies(groups, layout.slices),
    ]
    if layout.judged:
        columns.append([f"vulnerability ({layout.judged})", *_harms(groups, layout.judged)])
        harms = (group.any_sentence.get(layout.judged) for group in groups)
        columns.append(["harm of any sentence", *(interval(each and each[0]) for each in harms)])
    if any(group.kl_to_retrained for group in groups):
        columns += [
            [
                f"KL to retrained, {part.kind}",
                *(interval(g.kl_to_retrained.get(part)) for g in groups),
            ]
            for part in (FORGET, RETAIN)
        ]
    if perplexities:
        cells = (perplexities.get(group.label) for group in groups)
        shown = ("" if each is None else "{:.1f} → {:.1f}".format(*each) for each in cells)
        columns.append(["perplexity of neutral text", *shown])
    return of_columns(CAPTION + (f". {UNREADABLE}" if layout.judged else ""), columns)


def tables(
    groups: Sequence[Group], layout: Layout, perplexities: Perplexities | None = None
) -> list[TableData]:
    """The main table, every other slice, log-probabilities, and vulnerabilities by position."""
    found = [main_table(groups, layout, perplexities)]
    parts = list(dict.fromkeys(part for group in groups for part in group.accuracy))
    others = [part for part in parts if part.position is not None]
    if set(others) - set(layout.slices):
        caption = "Accuracy on the retain sets by variant and position"
        columns = _accuracies(groups, others, lambda each: f"{each.value:.2f}" if each else "")
        found.append(of_columns(caption, [_labels(groups), *columns]))
    columns = [
        [slice_name(part), *(interval(group.logprob.get(part)) for group in groups)]
        for part in layout.slices
        if part in parts
    ]
    caption = "Log-probability of the right choice among the choices (nats)"
    found.append(of_columns(caption, [_labels(groups), *columns]))
    unlearned = [group for group in groups if group.vulnerability]
    places = list(dict.fromkeys(place for group in unlearned for place in group.vulnerability))
    if places:
        columns = [
            [place + unit, *_harms(unlearned, place, number)]
            for number, unit in enumerate(("", ", nats"))
            for place in places
        ]
        caption = f"Vulnerability by position, in accuracy and in nats. {UNREADABLE}"
        found.append(of_columns(caption, [_labels(unlearned), *columns]))
    return found


def short_table(groups: Sequence[Group], layout: Layout) -> TableData:
    """What fits a terminal of 80 columns: intervals below their estimates, wrapped words."""
    shown = [part for part in layout.slices if part.position in (None, layout.judged)]
    columns = [
        ["accuracy", *(fill(group.label, 12) for group in groups)],
        *([fill(head, 10), *cells] for head, *cells in _accuracies(groups, shown, stacked)),
    ]
    if layout.judged:
        columns.append(["vulner-\nability", *_harms(groups, layout.judged, show=stacked)])
    return of_columns("with 95 % intervals", columns)


def _labels(groups: Sequence[Group]) -> list[str]:
    return ["model", *(group.label for group in groups)]


def _accuracies(
    groups: Sequence[Group], parts: Sequence[Slice], show: Show = interval
) -> list[list[str]]:
    """A column for each slice."""
    return [[slice_name(part), *(show(g.accuracy.get(part)) for g in groups)] for part in parts]


def _harms(
    groups: Sequence[Group], position: str, number: int = 0, show: Show = interval
) -> list[str]:
    """The vulnerabilities at a position; `number` 1 is in nats."""
    found = (group.vulnerability.get(position) for group in groups)
    return [show(each and each[number]) for each in found]


def unreadable_sentences(groups: Sequence[Group]) -> Iterator[str]:
    """The groups whose vulnerability says nothing, because any sentence harms them."""
    for group in groups:
        places = [place for place in group.vulnerability if not group.is_readable(place)]
        if places:
            yield (
                f"{group.label}: its vulnerability ({', '.join(places)}) cannot be read, because "
                "it also fails after a control token; unlearn it less."
            )


def heap_sentences(groups: Sequence[Group], layout: Layout) -> Iterator[str]:
    """The accuracies whose runs fall into two heaps, so that their mean describes neither."""
    for group in groups:
        for part in layout.slices:
            found = group.accuracy.get(part)
            if isinstance(found, SeededMean) and found.heaps:
                low, high = found.heaps
                yield (
                    f"{group.label}, {slice_name(part)}: the runs fall into two heaps, around "
                    f"{low:.2f} and {high:.2f}; their mean {found.value:.2f} describes neither."
                )


def curve_table(answers: Answers, layout: Layout) -> TableData:
    """Mean accuracies after every number of steps that all runs of a group were asked at.

    On the questions that all checkpoints answered.
    """
    means, rows = make_means(answers, layout.slices), []
    for label, runs in answers.groups().items():
        for step in sorted(set.intersection(*(set(steps) for steps in runs.values()))):
            own = [means.of[run, step] for run in runs]
            shares = (f"{fmean(each[part] for each in own):.2f}" for part in means.n)
            rows.append([label, str(len(runs)), str(step), *shares])
    return TableData("Mean accuracy by step", ["model", "runs", "steps", *counted(means)], rows)


def counted(means: Means) -> list[str]:
    """Heads of columns of accuracies, with their numbers of questions."""
    return [f"{slice_name(part)} (n = {n})" for part, n in means.n.items()]


def held_out(scenario: Scenario) -> set[QuestionKey]:
    """The questions behind a forget-token, at the judged position, that mixing does not use."""
    part, used = Slice("retain", FORGET_TOKEN, scenario.layout.judged), scenario.mixing_tokens
    asked = scenario.questions["reported"].asked(part) if used else {}
    return {name for name, q in asked.items() if q.replaced and q.replaced.token not in used}


def held_out_table(answers: Answers, names: Collection[QuestionKey], part: Slice) -> TableData:
    """Accuracy after forget-tokens that mixing used, and after those it did not.

    `part`: retain questions after a forget-token. `names`: those whose token is in no mixed retain
    text.
    """
    groups = {name: list(late_answers(runs).values()) for name, runs in answers.groups().items()}
    rows = []
    for label, runs in {"reference": [[answers.reference]], **groups}.items():
        found = panel(part, [answers.reference, *chain.from_iterable(runs)])
        is_out = torch.tensor([name in names for name in found.ids])
        right = run_means(found.correct[1:], runs)
        row = [label, str(len(runs))]
        for half in (right[:, ~is_out], right[:, is_out]):
            means = seeded_means([half], proportions=True) if half.numel() else [None]
            row += [str(half.shape[1]), interval(means[0])]
        rows.append(row)
    return TableData(
        "Does mixing protect from forget-tokens that it did not use?",
        ["model", "runs", "n, used", "accuracy", "n, held out", "accuracy"],
        rows,
    )


def more_tables(scenario: Scenario, answers: Answers) -> list[TableData]:
    """The accuracies by step, and those after forget-tokens that mixing did not use."""
    found = [curve_table(answers, scenario.layout)]
    mixes = any("mixing" in run.defence for run in answers.finished)
    if mixes and (names := held_out(scenario)):
        part = Slice("retain", FORGET_TOKEN, scenario.layout.judged)
        found.append(held_out_table(answers, names, part))
    return [table for table in found if table.rows]


def defence_sentences(defences: Sequence[Defence], position: str | None = None) -> Iterator[str]:
    """What each defence changes, late in training and at matched forgetting.

    `position`: only at this one.
    """
    for defence in defences:
        gains = [
            f"{place} {interval(gain)}"
            for place, gain in defence.recovered.items()
            if position in (None, place)
        ]
        if gains:
            yield (
                f"{defence.label} against {defence.against}: change of the accuracy after a "
                f"forget-token in the last quarter of the steps, by position: {', '.join(gains)}."
            )
        for place, matched in defence.matched.items():
            if position in (None, place):
                yield f"{defence.label}, {place}: {matched_sentence(matched)}"


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
