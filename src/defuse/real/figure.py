"""Two figures: the forget-term's harm along the steps, and all methods side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defuse.experiment.answers import FORGET, Answers
from defuse.experiment.compare import RIGHT, Row, mean, shared_ids
from defuse.experiment.figures import points
from defuse.real.table import Finished

# Okabe and Ito's colours, told apart by colour-blind readers; markers say the same again.
PLAIN, NOISED, BASE = "#D55E00", "#0072B2", "#000000"
LOOKS: Mapping[bool, Mapping[str, Any]] = {
    False: {"color": PLAIN, "marker": "o"},
    True: {"color": NOISED, "marker": "s"},
}


def draw_main(rows: Sequence[Row], finished: Finished, base: Answers) -> Figure:
    """Left: accuracy clean, after a control and after a forget-term. Right: along the steps."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_forms(left, rows)
    _draw_curve(right, finished, base)
    return figure


def _draw_forms(axes: Axes, rows: Sequence[Row]) -> None:
    looks = [{"color": BASE, "marker": "D"}, LOOKS[False], LOOKS[True]]
    for place, (row, look) in enumerate(zip(rows, looks, strict=False)):
        values = (row.forget, row.clean, row.after_control, row.after_term)
        points(axes, [x + 0.18 * (place - 1) for x in range(4)], values, row.label, look)
    axes.axhline(0.25, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(4), ["forget\ndomain", "other\ndomains", "… after a\ncontrol term",
                               "… after a\nforget-term"])  # fmt: skip
    axes.set(ylabel="accuracy (95 % interval)", ylim=(0, 1))
    axes.legend(frameon=False, fontsize="small")


def _draw_curve(axes: Axes, finished: Finished, base: Answers) -> None:
    """Thin: each seed; bold: their mean, with the number of steps."""
    sheets = [sheet for steps in finished.values() for sheet in steps.values()]
    ids, kept = (shared_ids(form, sheets, base) for form in (FORGET, "before/forget"))
    for rna in (False, True):
        runs = [steps for run, steps in finished.items() if run.rna == rna]
        if not runs:
            continue
        steps = [0, *sorted(set.intersection(*(set(run) for run in runs)))]
        curves = np.array([[_place({0: base, **run}[s], ids, kept) for s in steps] for run in runs])
        for curve in curves:
            axes.plot(*curve.T, color=LOOKS[rna]["color"], alpha=0.35, linewidth=1)
        middle = curves.mean(axis=0)
        axes.plot(*middle.T, label="with RNA" if rna else "without RNA", linewidth=2, **LOOKS[rna])
        for step, here in zip(steps[1:], middle[1:], strict=True):
            text = {"xytext": (6, 3) if rna else (-6, -9), "ha": "left" if rna else "right"}
            axes.annotate(
                str(step), here, textcoords="offset points", color=LOOKS[rna]["color"], **text
            )
    axes.set(
        xlabel="accuracy on the forget domain (numbers: steps)",
        ylabel="other domains, after a forget-term",
        ylim=(0, 1),
    )
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _place(sheet: Answers, ids: Sequence[str], kept: Sequence[str]) -> tuple[float, float]:
    return mean(sheet, FORGET, ids, RIGHT), mean(sheet, "before/forget", kept, RIGHT)


def draw_all(rows: Sequence[Row]) -> Figure:
    """Every row's forget accuracy and vulnerability, without RNA and with it on one line."""
    named = [row for row in rows if row.vulnerability is not None]
    names = list(dict.fromkeys(row.label.removesuffix(" + RNA") for row in named))
    figure = Figure(figsize=(10, 1.2 + 0.32 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for rna, shift in ((False, -0.15), (True, 0.15)):
        some = [row for row in named if row.label.endswith(" + RNA") == rna]
        y = [names.index(row.label.removesuffix(" + RNA")) + shift for row in some]
        title = "with RNA" if rna else "without RNA"
        points(left, y, [r.forget for r in some], title, LOOKS[rna], across=True)
        effects = [r.vulnerability for r in some if r.vulnerability is not None]
        points(right, y, effects, title, LOOKS[rna], across=True)
    left.axvline(0.25, color="grey", linestyle=":", linewidth=1)
    right.axvline(0, color="grey", linestyle=":", linewidth=1)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set(xlabel="accuracy on the forget domain (dotted: chance)", xlim=(0, 1))
    right.set(xlabel="vulnerability to a forget-term (0: none)")
    right.legend(frameon=False, fontsize="small")
    return figure
