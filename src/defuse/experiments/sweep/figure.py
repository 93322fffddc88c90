"""The Pareto plot: forgetting against keeping, and the settings that no other dominates."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defuse.experiments.core.metrics import Group
from defuse.experiments.sweep.summary import figures, pareto_front, value

# Okabe and Ito's colours, told apart by colour-blind readers; markers say the same again.
BASE, FRONT, OTHER = "#000000", "#0072B2", "#999999"
PANELS = {
    "retain_accuracy": "accuracy on the retain questions",
    "after_forget_accuracy": "… after a forget-token",
}


def draw(base: Group, groups: Sequence[Group]) -> Figure:
    """A panel for the retain questions, and one for them after a forget-token, if asked.

    Up and to the left is better; bars are 95 % intervals.
    """
    shown = [name for name in PANELS if name in figures(base)]
    figure = Figure(figsize=(5.4 * len(shown), 4.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw_panel(axes, base, groups, name)
    return figure


def _draw_panel(axes: Axes, base: Group, groups: Sequence[Group], name: str) -> None:
    front = pareto_front(groups, name)
    others = [group for group in groups if group not in front]
    axes.plot(
        [value(group, "forget_accuracy") for group in front],
        [value(group, name) for group in front],
        color=FRONT,
        linewidth=1,
        linestyle="--",
    )
    _points(axes, [base], name, "reference", BASE, "D")
    _points(axes, others, name, "dominated", OTHER, "o")
    _points(axes, front, name, "Pareto front", FRONT, "s")
    labels: dict[tuple[float, float], list[str]] = {}
    for group in front:
        place = (value(group, "forget_accuracy"), value(group, name))
        labels.setdefault(place, []).append(group.label)
    for place, names in labels.items():
        axes.annotate(
            "\n".join(names),
            place,
            (5, 5),
            textcoords="offset points",
            fontsize="x-small",
            color=FRONT,
        )
    axes.axvline(0.25, color="grey", linestyle=":", linewidth=1)
    axes.set(
        xlabel="accuracy on the forget questions (dotted: chance)",
        ylabel=PANELS[name],
        xlim=(0, 1.03),
        ylim=(0, 1.03),
    )
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _points(
    axes: Axes, groups: Sequence[Group], name: str, label: str, color: str, marker: str
) -> None:
    if not groups:
        return
    across, up = (
        [figures(group)[figure][1] for group in groups] for figure in ("forget_accuracy", name)
    )
    axes.errorbar(
        [each.value for each in across],
        [each.value for each in up],
        xerr=[[e.value - e.low for e in across], [e.high - e.value for e in across]],
        yerr=[[e.value - e.low for e in up], [e.high - e.value for e in up]],
        color=color,
        marker=marker,
        linestyle="none",
        elinewidth=0.6,
        markersize=5,
        label=label,
    )
