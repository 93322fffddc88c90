"""The figure of an experiment: accuracies by variant, and the way there step by step."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defuse.experiments.core.answers import FORGET, FORGET_TOKEN, RETAIN, Slice
from defuse.experiments.core.metrics import Answers, Group, chance, make_means
from defuse.experiments.core.scenario import DEFENCES, Layout
from defuse.experiments.core.tables import slice_name
from defuse.report.plots import COLOURS, accuracy_axes, note, points

# Markers say the same as colours.
LOOKS: Mapping[str, Mapping[str, Any]] = {
    "reference": {"color": COLOURS["black"], "marker": "D"},
    "retrained": {"color": COLOURS["grey"], "marker": "*"},
    "none": {"color": COLOURS["orange"], "marker": "o"},
    "rna": {"color": COLOURS["blue"], "marker": "s"},
    "mixing": {"color": COLOURS["green"], "marker": "^"},
    "rna+mixing": {"color": COLOURS["pink"], "marker": "v"},
}
NAMES = {"none": "no defence"}


def draw(groups: Sequence[Group], answers: Answers, layout: Layout) -> Figure:
    """A row for each method and retain loss: accuracies by slice, and the way there."""
    some = answers.where(lambda run: run.group in (layout.shown_groups or {run.group}))
    answers = some if some.finished else answers
    pairs = list(dict.fromkeys((run.method, run.retain_loss) for run in answers.finished))
    figure = Figure(figsize=(11, 3.8 * max(1, len(pairs))), layout="constrained")
    by_label = {group.label: group for group in groups}
    rows = figure.subplots(max(1, len(pairs)), 2, squeeze=False)
    for pair, (left, right) in zip(pairs, rows, strict=True):
        own = answers.where(lambda run, pair=pair: (run.method, run.retain_loss) == pair)
        shown = {name: by_label[name] for name in ("reference", "retrained") if name in by_label}
        shown |= {run.defence: by_label[run.group] for run in own.finished}
        _draw_slices(left, shown, layout, chance(answers.reference, FORGET))
        left.set_title(" + ".join(pair), loc="left", fontsize="medium")
        _draw_curves(right, own, layout)
    return figure


def _draw_slices(axes: Axes, shown: Mapping[str, Group], layout: Layout, guess: float) -> None:
    for place, (name, group) in enumerate(shown.items()):
        parts = [(x, part) for x, part in enumerate(layout.slices) if part in group.accuracy]
        shift = 0.13 * (place - (len(shown) - 1) / 2)
        intervals = [group.accuracy[part] for _, part in parts]
        points(axes, [x + shift for x, _ in parts], intervals, NAMES.get(name, name), LOOKS[name])
    counts = next(iter(shown.values())).n
    names = [fill(slice_name(part), 15) for part in layout.slices]
    labels = [f"{n}\nn = {counts.get(p, 0)}" for n, p in zip(names, layout.slices, strict=True)]
    axes.axhline(guess, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(labels)), labels, fontsize="x-small")
    axes.set(ylabel="accuracy (95 % interval; dotted: chance)", ylim=(0, 1.03))
    axes.legend(frameon=False, fontsize="small", loc="lower center", ncols=2)


def _draw_curves(axes: Axes, answers: Answers, layout: Layout) -> None:
    """Thin lines: each seed; bold: their mean, with the number of steps at each checkpoint."""
    kept = RETAIN if layout.judged is None else Slice("retain", FORGET_TOKEN, layout.judged)
    means, finished = make_means(answers, (FORGET, kept)), answers.finished
    for defence in DEFENCES if len(means.n) == 2 else ():
        runs = [run for run in finished if run.defence == defence]
        if not runs:
            continue
        look = LOOKS[defence]
        shared = sorted(set.intersection(*(set(finished[run]) for run in runs)))
        lines = [[means.reference, *(means.of[run, step] for step in shared)] for run in runs]
        curves = np.array([[(each[FORGET], each[kept]) for each in line] for line in lines])
        for curve in curves:
            axes.plot(*curve.T, color=look["color"], alpha=0.25, linewidth=1)
        middle = curves.mean(axis=0)
        axes.plot(*middle.T, label=NAMES.get(defence, defence), linewidth=2, markersize=5, **look)
        for step, here in zip(shared, middle[1:], strict=True):
            note(axes, str(step), here, (4, 3), look["color"])
    across = "accuracy on the forget set (numbers: steps; dotted: chance)"
    up = fill(f"accuracy: {slice_name(kept)}", 32)
    accuracy_axes(axes, chance(answers.reference, FORGET), across, up)
