"""The Pareto plot: forgetting against keeping, and the settings that no other dominates."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defuse.experiments.core.answers import FORGET, FORGET_TOKEN, RETAIN, Slice
from defuse.experiments.core.metrics import Answers, Group, chance
from defuse.experiments.core.scenario import Layout
from defuse.report.plots import COLOURS, accuracy_axes, note, points

# Markers say the same as colours.
LOOKS = {"reference": ("black", "D"), "dominated": ("grey", "o"), "Pareto front": ("blue", "s")}
FIGURE_TEXT = "Retain accuracy against forget accuracy, and the settings that no other dominates."
PANELS = ("accuracy on the retain questions", "… after a forget-token")


def pareto_front(groups: Sequence[Group], kept: Slice) -> list[Group]:
    """The groups that no other dominates: better in forgetting or keeping, worse in none.

    The accuracy on `kept` should be high, that on the forget set low. From the group that forgot
    most to the one that kept most.
    """
    places = {id(g): (g.accuracy[FORGET].value, -g.accuracy[kept].value) for g in groups}

    def is_dominated(group: Group) -> bool:
        here = places[id(group)]
        return any(
            all(a <= b for a, b in zip(other, here, strict=True)) and other != here
            for other in places.values()
        )

    front = [group for group in groups if not is_dominated(group)]
    return sorted(front, key=lambda group: places[id(group)])


def draw(groups: Sequence[Group], answers: Answers, layout: Layout) -> Figure:
    """A panel for the retain questions, and one for them after a forget-token, if asked.

    Up and to the left is better; bars are 95 % intervals.
    """
    kept = [RETAIN, *([Slice("retain", FORGET_TOKEN, layout.judged)] if layout.judged else [])]
    figure = Figure(figsize=(5.4 * len(kept), 4.6), layout="constrained")
    panels = figure.subplots(1, len(kept), squeeze=False)[0]
    for axes, part, name in zip(panels, kept, PANELS, strict=False):
        _draw_panel(axes, groups, part)
        guess = chance(answers.reference, FORGET)
        accuracy_axes(axes, guess, "accuracy on the forget questions (dotted: chance)", name)
    return figure


def _draw_panel(axes: Axes, groups: Sequence[Group], kept: Slice) -> None:
    reference, *settings = groups
    front = pareto_front(settings, kept)
    others = [group for group in settings if group not in front]
    places = [(group.accuracy[FORGET].value, group.accuracy[kept].value) for group in front]
    axes.plot(*zip(*places, strict=True), color=COLOURS["blue"], linewidth=1, ls="--")
    for name, some in zip(LOOKS, ([reference], others, front), strict=True):
        across, up = ([group.accuracy[part] for group in some] for part in (FORGET, kept))
        if some:
            color, marker = LOOKS[name]
            look = {"color": COLOURS[color], "marker": marker, "elinewidth": 0.6, "capsize": 0}
            points(axes, across, up, name, look)
    for place in dict.fromkeys(places):
        names = [group.label for group, there in zip(front, places, strict=True) if there == place]
        note(axes, "\n".join(names), place, (5, 5), COLOURS["blue"])
