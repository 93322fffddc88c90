"""Predicted and measured effects of noise on hidden states that a forget-token has shifted.

The predictions are derived in docs/theory.md.
"""

from defuse.experiments.theory.compare import LayerReport, compare_layer
from defuse.experiments.theory.rates import flip_rate, isotropic_flip_rate, monte_carlo_flip_rate
from defuse.experiments.theory.shifts import Shifts, measure_shifts

__all__ = [
    "LayerReport",
    "Shifts",
    "compare_layer",
    "flip_rate",
    "isotropic_flip_rate",
    "measure_shifts",
    "monte_carlo_flip_rate",
]
