"""Two figures: the forget-term's harm along the steps, and all methods side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defuse.experiments.core.answers import FORGET, Answers
from defuse.experiments.core.metrics import RIGHT, Row, mean, shared_ids
from defuse.experiments.elements.grid import ARMS
from defuse.experiments.elements.table import Finished
from defuse.report.plots import points

# Okabe and Ito's colours, told apart by colour-blind readers; markers say the same again.
LOOKS: Mapping[str, Mapping[str, Any]] = {
    "base": {"color": "#000000", "marker": "D"},
    "none": {"color": "#D55E00", "marker": "o"},
    "RNA": {"color": "#0072B2", "marker": "s"},
    "mixed": {"color": "#009E73", "marker": "^"},
}
TITLES = {"none": "without a defence", "RNA": "with RNA", "mixed": "with forget-terms mixed in"}


def draw_main(rows: Sequence[Row], finished: Finished, base: Answers) -> Figure:
    """Left: accuracy clean, after a control and after a forget-term. Right: along the steps."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_forms(left, rows)
    _draw_curve(right, finished, base)
    return figure


def _draw_forms(axes: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        look = LOOKS["base"] if row.label == "base" else LOOKS[_arm(row)]
        values = (row.forget, row.clean, row.after_control, row.after_term)
        points(axes, [x + 0.16 * (place - 1.5) for x in range(4)], values, row.label, look)
    axes.axhline(0.25, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(4), ["forget\ndomain", "other\ndomains", "… after a\ncontrol term",
                               "… after a\nforget-term"])  # fmt: skip
    axes.set(ylabel="accuracy (95 % interval)", ylim=(0, 1))
    axes.legend(frameon=False, fontsize="small")


def _draw_curve(axes: Axes, finished: Finished, base: Answers) -> None:
    """Thin: each seed; bold: their mean, with the number of steps."""
    sheets = [sheet for steps in finished.values() for sheet in steps.values()]
    ids, kept = (shared_ids(form, sheets, base) for form in (FORGET, "before/forget"))
    for arm in ARMS:
        runs = [steps for run, steps in finished.items() if run.arm == arm]
        if not runs:
            continue
        steps = [0, *sorted(set.intersection(*(set(run) for run in runs)))]
        curves = np.array([[_place({0: base, **run}[s], ids, kept) for s in steps] for run in runs])
        for curve in curves:
            axes.plot(*curve.T, color=LOOKS[arm]["color"], alpha=0.35, linewidth=1)
        middle = curves.mean(axis=0)
        axes.plot(*middle.T, label=TITLES[arm], linewidth=2, **LOOKS[arm])
        for step, here in zip(steps[1:], middle[1:], strict=True):
            below = arm == "none"
            text = {"xytext": (-6, -9) if below else (6, 3), "ha": "right" if below else "left"}
            axes.annotate(
                str(step), here, textcoords="offset points", color=LOOKS[arm]["color"], **text
            )
    axes.set(
        xlabel="accuracy on the forget domain (numbers: steps)",
        ylabel="other domains, after a forget-term",
        ylim=(0, 1),
    )
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _pair(row: Row) -> str:
    return row.label.partition(" + ")[0]


def _arm(row: Row) -> str:
    return row.label.partition(" + ")[2] or "none"


def _place(sheet: Answers, ids: Sequence[str], kept: Sequence[str]) -> tuple[float, float]:
    return mean(sheet, FORGET, ids, RIGHT), mean(sheet, "before/forget", kept, RIGHT)


def draw_all(rows: Sequence[Row]) -> Figure:
    """Every row's forget accuracy and vulnerability, with each defence on one line."""
    named = [row for row in rows if row.vulnerability is not None]
    names = list(dict.fromkeys(_pair(row) for row in named))
    figure = Figure(figsize=(10, 1.2 + 0.32 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for arm, shift in zip(ARMS, (-0.2, 0, 0.2), strict=True):
        some = [row for row in named if _arm(row) == arm]
        y = [names.index(_pair(row)) + shift for row in some]
        points(left, y, [r.forget for r in some], TITLES[arm], LOOKS[arm], across=True)
        effects = [r.vulnerability for r in some if r.vulnerability is not None]
        points(right, y, effects, TITLES[arm], LOOKS[arm], across=True)
    left.axvline(0.25, color="grey", linestyle=":", linewidth=1)
    right.axvline(0, color="grey", linestyle=":", linewidth=1)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set(xlabel="accuracy on the forget domain (dotted: chance)", xlim=(0, 1))
    right.set(xlabel="vulnerability to a forget-term (0: none)")
    right.legend(frameon=False, fontsize="small")
    return figure
