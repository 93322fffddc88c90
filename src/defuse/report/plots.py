"""Drawing that all figures share: estimates with their intervals, and files written whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defuse.statistics import Interval
from defuse.utils.files import new_file

# Okabe and Ito's, which colour-blind readers can tell apart, and a grey.
COLOURS = {
    "black": "#000000",
    "grey": "#999999",
    "blue": "#0072B2",
    "orange": "#D55E00",
    "green": "#009E73",
    "pink": "#CC79A7",
}
Value = float | Interval


def points(
    axes: Axes, x: Sequence[Value], y: Sequence[Value], name: str, look: Mapping[str, Any]
) -> None:
    """Draw points with a bar for each coordinate that is an interval."""
    middles = ([v.value if isinstance(v, Interval) else v for v in each] for each in (x, y))
    look = {"linestyle": "none", "capsize": 2, "markersize": 5, "label": name, **look}
    axes.errorbar(*middles, xerr=_bars(x), yerr=_bars(y), **look)


def _bars(values: Sequence[Value]) -> list[list[float]] | None:
    """The lengths of the bars below and above; None for values without intervals."""
    intervals = [v for v in values if isinstance(v, Interval)]
    if not intervals:
        return None
    return [[v.value - v.low for v in intervals], [v.high - v.value for v in intervals]]


def accuracy_axes(axes: Axes, chance: float, x: str, y: str) -> None:
    """Finish a plot of two accuracies: names, limits, a legend, and a dotted line at chance."""
    axes.axvline(chance, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1.03), ylim=(0, 1.03))
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def note(
    axes: Axes, text: str, place: Sequence[float], offset: tuple[float, float], colour: str
) -> None:
    """Write small text beside a point; `offset`: to the right and up (points)."""
    axes.annotate(
        text,
        (place[0], place[1]),
        offset,
        textcoords="offset points",
        fontsize="x-small",
        color=colour,
    )


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write PNG and SVG, each whole or not at all; returns their paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        with new_file(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=150)
    return paths
