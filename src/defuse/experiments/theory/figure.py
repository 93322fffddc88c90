"""A figure of the effects' normality, and of flip rates as predicted and as measured."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import probplot

from defuse.experiments.theory.compare import LayerReport
from defuse.experiments.theory.shifts import Shifts
from defuse.report.plots import points

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def draw(reports: Sequence[LayerReport], shifts: Shifts) -> Figure:
    """Draw effects g·ε/‖g‖ against normal quantiles (left) and flip rates by noise (right)."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for layer, colour in zip(dict.fromkeys(r.layer for r in reports), COLOURS * 8, strict=False):
        effects = shifts.effects(layer).numpy()
        quantiles, ordered = probplot(effects / max(effects.std(), 1e-12), fit=False)
        left.plot(quantiles, ordered, ".", color=colour, label=f"layer {layer}")
        own = [report for report in reports if report.layer == layer]
        x = [report.noise_std / np.sqrt(report.shift_variance) for report in own]
        look = {"color": colour, "marker": "o"}
        points(right, x, [report.measured for report in own], "", look)
        right.plot(x, [report.general for report in own], color=colour, label=f"layer {layer}")
        right.plot(x, [report.isotropic for report in own], color=colour, linestyle=":")
    left.axline((0, 0), slope=1, color="grey", linewidth=1)
    left.set(xlabel="normal quantiles", ylabel="effect g·ε/‖g‖ in standard deviations")
    right.set(
        xscale="log",
        xlabel="std of the noise / std of the shift, √(ν/η)",
        ylabel="flip rate (points measured, lines general, dotted isotropic)",
        ylim=(0, 0.6),
    )
    for axes in (left, right):
        axes.legend(frameon=False, fontsize="small")
    return figure
