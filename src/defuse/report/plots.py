"""Drawing that all figures share: estimates with their intervals, and files written whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defuse.statistics import Interval
from defuse.utils.files import new_file


def points(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[Interval],
    name: str,
    look: Mapping[str, Any],
    *,
    across: bool = False,
) -> None:
    """Estimates with their intervals at `places`, up the page or `across` it."""
    estimates = [v.value for v in values]
    errors = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
    look = {**look, "linestyle": "none", "capsize": 2, "markersize": 5, "label": name}
    if across:
        axes.errorbar(estimates, places, xerr=errors, **look)
    else:
        axes.errorbar(places, estimates, yerr=errors, **look)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write PNG and SVG, each whole or not at all; returns their paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        with new_file(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=150)
    return paths
