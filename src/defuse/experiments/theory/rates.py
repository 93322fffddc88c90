"""Flip rates: how often noise reverses the sign of a forget-token's effect, to first order.

A forget-token shifts a hidden state by ε, and noise shifts it by δ ~ N(0, ν·I). With g, the
gradient of the loss at that state, the loss changes by g·ε without noise and by g·(ε + δ) with
noise. A flip rate is P(g·ε and g·(ε + δ) differ in sign). The derivation is in docs/theory.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import owens_t
from scipy.stats import normaltest
from torch import Tensor

from defuse.experiments.theory.shifts import Shifts
from defuse.statistics import Interval, wilson
from defuse.utils.errors import require
from defuse.utils.random import generator

MONTE_CARLO_DRAWS = 2000  # for each question
FEWEST_FOR_NORMALITY = 20


@dataclass(frozen=True)
class LayerReport:
    """The shift at one layer, a test of its normality, and flip rates (shares) at one noise.

    `shift_variance` (η): mean square of ε per unit. `systematic`: the share of η that is due to the
    mean shift. `normality`: p-value for the effects g·ε/‖g‖ (D'Agostino and Pearson; None for fewer
    than 20 questions). Predictions: `isotropic` from η alone; `general` from the mean and variance
    of the effects, averaged over questions; `monte_carlo` estimates the same by sampling, with its
    standard error. `measured`: how often noise on the shifted state reversed the sign of the loss
    change in the model.
    """

    layer: int
    noise_std: float
    shift_variance: float
    systematic: float
    normality: float | None
    isotropic: float
    general: float
    monte_carlo: tuple[float, float]
    measured: Interval


def compare_layer(
    shifts: Shifts, layer: int, noise_std: float, flips: Sequence[bool]
) -> LayerReport:
    """Predict the flip rate from the shifts at one layer; `flips` are those of the model."""
    shift, effects = shifts.shift[layer].double(), shifts.effects(layer).numpy()
    variance = shift.square().mean().item()
    moments = _moments(shift, shifts.gradient[layer].double(), noise_std**2)
    drawn = [
        monte_carlo_flip_rate(*each, draws=MONTE_CARLO_DRAWS, seed=number)
        for number, each in enumerate(moments)
    ]
    error = math.sqrt(sum(error**2 for _, error in drawn)) / len(drawn)
    enough = len(effects) >= FEWEST_FOR_NORMALITY
    return LayerReport(
        layer,
        noise_std,
        variance,
        systematic=shift.mean(dim=0).square().mean().item() / variance,
        normality=float(normaltest(effects).pvalue) if enough else None,
        isotropic=isotropic_flip_rate(variance, noise_std**2),
        general=sum(flip_rate(*each) for each in moments) / len(moments),
        monte_carlo=(sum(rate for rate, _ in drawn) / len(drawn), error),
        measured=wilson(sum(flips), len(flips)),
    )


def _moments(shift: Tensor, gradient: Tensor, noise_variance: float) -> list[list[float]]:
    """For each question's g: mean g·μ and variance gᵀΣg of the effect, and the noise's ν·‖g‖²."""
    mean = shift.mean(dim=0)
    centred = gradient @ (shift - mean).T  # (questions by gradient, questions by shift)
    spread = centred.square().sum(dim=1) / max(1, len(shift) - 1)
    noise = noise_variance * gradient.square().sum(dim=1)
    return torch.stack([gradient @ mean, spread, noise], dim=1).tolist()


def isotropic_flip_rate(shift_variance: float, noise_variance: float) -> float:
    """The flip rate for ε ~ N(0, η·I): arctan(√(ν/η))/π = 1/2 − arctan(√(η/ν))/π.

    `shift_variance` is η and `noise_variance` is ν, both per hidden unit. The rate does not depend
    on g; it is 0 without noise and grows towards 1/2 with ν/η. Raises UsageError for variances that
    are negative or both 0.
    """
    _check(shift_variance, noise_variance)
    return math.atan2(math.sqrt(noise_variance), math.sqrt(shift_variance)) / math.pi


def flip_rate(mean: float, shift_variance: float, noise_variance: float) -> float:
    """The flip rate for any normal ε: 2·T(m/√(s² + n²), n/s), with T Owen's function.

    ε has mean μ and covariance Σ. `mean` is m = g·μ, `shift_variance` is s² = gᵀΣg and
    `noise_variance` is n² = ν·‖g‖². For m = 0 this is the isotropic rate; for |m| well above
    √(s² + n²) it is close to 0.
    """
    _check(shift_variance, noise_variance)
    spread = math.sqrt(shift_variance + noise_variance)
    ratio = math.inf if shift_variance == 0 else math.sqrt(noise_variance / shift_variance)
    return 2 * float(owens_t(mean / spread, ratio))


def monte_carlo_flip_rate(
    mean: float, shift_variance: float, noise_variance: float, *, draws: int, seed: int = 0
) -> tuple[float, float]:
    """Estimate `flip_rate` by sampling both changes; the rate and its standard error."""
    _check(shift_variance, noise_variance)
    rng = generator(seed, "flip rate", draws)
    shift, noise = torch.randn(2, draws, generator=rng, dtype=torch.float64)
    without = mean + math.sqrt(shift_variance) * shift
    with_noise = without + math.sqrt(noise_variance) * noise
    rate = (without * with_noise < 0).double().mean().item()
    return rate, math.sqrt(rate * (1 - rate) / draws)


def _check(shift_variance: float, noise_variance: float) -> None:
    for name, value in (("shift_variance", shift_variance), ("noise_variance", noise_variance)):
        require(0 <= value < math.inf, name, value, "must be a finite number that is not negative")
    both = shift_variance + noise_variance
    require(
        both > 0, "noise_variance", noise_variance, "and the shift's are 0; one must be above 0"
    )
