"""How often noise turns a trigger's effect around, to first order; derived in docs/theory.md.

A trigger moves a hidden state by ε and noise by δ ~ N(0, ν·I). With g, the loss's gradient at that
state, the trigger changes the loss by g·ε without and by g·(ε + δ) with the noise. The rates here
are P(g·ε and g·(ε + δ) differ in sign).
"""

import math

import torch
from scipy.special import owens_t

from defuse.utils.errors import require
from defuse.utils.random import generator

MONTE_CARLO_DRAWS = 200_000


def isotropic_flip_rate(shift_variance: float, noise_variance: float) -> float:
    """For ε ~ N(0, η·I): arctan(√(ν/η))/π = 1/2 − arctan(√(η/ν))/π.

    `shift_variance` is η, `noise_variance` is ν, both per hidden unit. 0 without noise, growing
    towards 1/2 with ν/η, whatever g. Raises UsageError for variances that are negative or both 0.
    """
    _check(shift_variance, noise_variance)
    return math.atan2(math.sqrt(noise_variance), math.sqrt(shift_variance)) / math.pi


def flip_rate(mean: float, shift_variance: float, noise_variance: float) -> float:
    """For any normal ε: 2·T(m/√(s² + n²), n/s), T Owen's function.

    Of the loss's first-order changes: `mean` m = g·μ, `shift_variance` s² = gᵀΣg and
    `noise_variance` n² = ν·‖g‖², where ε has mean μ and covariance Σ. With m = 0 this is the
    isotropic rate; a mean beyond √(s² + n²) is hardly ever turned around.
    """
    _check(shift_variance, noise_variance)
    spread = math.sqrt(shift_variance + noise_variance)
    ratio = math.inf if shift_variance == 0 else math.sqrt(noise_variance / shift_variance)
    return 2 * float(owens_t(mean / spread, ratio))


def monte_carlo_flip_rate(
    mean: float,
    shift_variance: float,
    noise_variance: float,
    *,
    draws: int = MONTE_CARLO_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """The same by drawing both changes: the rate and its standard error."""
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
    require(both > 0, "noise_variance", noise_variance, "and the shift's are 0: nothing varies")
