"""The lab's figure: every arm's accuracies, and what a forget-term does along the steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defuse.experiments.core.answers import CLEAN, FORGET, Answers
from defuse.experiments.core.metrics import RIGHT, mean, shared_ids
from defuse.experiments.synthetic.compare import Finished, Group
from defuse.experiments.synthetic.grid import ARMS, NOISE_STD
from defuse.report.plots import points

# Okabe and Ito's colours, told apart by colour-blind readers; markers say the same again.
LOOKS: Mapping[str, Mapping[str, Any]] = {
    "base": {"color": "#000000", "marker": "D"},
    "gold": {"color": "#999999", "marker": "*"},
    "none": {"color": "#D55E00", "marker": "o"},
    "rna": {"color": "#0072B2", "marker": "s"},
    "mixed": {"color": "#009E73", "marker": "^"},
    "rna+mixed": {"color": "#CC79A7", "marker": "v"},
}
FORMS = {
    FORGET: "forget\nset",
    CLEAN: "retain\nset",
    "before/control": "… after a\ncontrol name",
    "before/forget": "… after a\nforget-name",
    "statement/control": "… a control\nstatement",
    "statement/forget": "… a forget-\nstatement",
}
CURVE_FORM = "statement/forget"


def draw(groups: Sequence[Group], finished: Finished, base: Answers) -> Figure:
    """A row for each method and retain loss: accuracies by form, and the way there.

    Of several noises the one that the tuning questions chose.
    """
    finished = {r: s for r, s in finished.items() if r.noise in (None, NOISE_STD[r.retain])}
    pairs = list(dict.fromkeys((run.method, run.retain) for run in finished))
    figure = Figure(figsize=(11, 3.8 * len(pairs)), layout="constrained")
    by_label = {group.label: group for group in groups}
    for (method, retain), (left, right) in zip(
        pairs, figure.subplots(len(pairs), 2, squeeze=False), strict=True
    ):
        own = {r: s for r, s in finished.items() if (r.method, r.retain) == (method, retain)}
        arms = {run.arm: by_label[run.label] for run in own}
        shown = {"base": by_label["base"], "gold": by_label["gold"], **arms}
        _draw_forms(left, shown)
        left.set_title(f"{method} + {retain}", loc="left", fontsize="medium")
        _draw_curves(right, own, base)
    return figure


def _draw_forms(axes: Axes, shown: Mapping[str, Group]) -> None:
    for place, (arm, group) in enumerate(shown.items()):
        values = [group.accuracy[form] for form in FORMS]
        shift = 0.13 * (place - (len(shown) - 1) / 2)
        points(axes, [x + shift for x in range(len(FORMS))], values, arm, LOOKS[arm])
    axes.axhline(0.25, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(FORMS)), list(FORMS.values()), fontsize="small")
    axes.set(ylabel="accuracy (95 % interval)", ylim=(0, 1.03))
    axes.legend(frameon=False, fontsize="small", loc="lower center", ncols=2)


def _draw_curves(axes: Axes, finished: Finished, base: Answers) -> None:
    """Thin: each seed; bold: their mean, a marker at each checkpoint."""
    sheets = [sheet for steps in finished.values() for sheet in steps.values()]
    ids, kept = (shared_ids(form, sheets, base) for form in (FORGET, CURVE_FORM))

    def place(sheet: Answers) -> tuple[float, float]:
        return mean(sheet, FORGET, ids, RIGHT), mean(sheet, CURVE_FORM, kept, RIGHT)

    for arm in ARMS:
        runs = [steps for run, steps in finished.items() if run.arm == arm]
        if not runs:
            continue
        shared = sorted(set.intersection(*(set(run) for run in runs)))
        curves = np.array([[place(base), *(place(run[s]) for s in shared)] for run in runs])
        for curve in curves:
            axes.plot(*curve.T, color=LOOKS[arm]["color"], alpha=0.25, linewidth=1)
        axes.plot(*curves.mean(axis=0).T, label=arm, linewidth=2, markersize=5, **LOOKS[arm])
    axes.axvline(0.25, color="grey", linestyle=":", linewidth=1)
    axes.set(
        xlabel="accuracy on the forget set, step by step",
        ylabel="retain set, after a forget-statement",
        xlim=(0, 1.03),
        ylim=(0, 1.03),
    )
    axes.legend(frameon=False, fontsize="small", loc="lower right")
