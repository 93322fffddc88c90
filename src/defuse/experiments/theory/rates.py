"""Flip rates: how often noise reverses the sign of a forget-token's effect, to first order.

A forget-token shifts a hidden state by ε, and noise shifts it by δ ~ N(0, ν·I). With g, the
gradient of the loss at that state, the loss changes by g·ε without noise and by g·(ε + δ) with
noise. A flip rate is P(g·ε and g·(ε + δ) differ in sign). The derivation is in docs/theory.md.
"""

import math

import torch
from scipy.special import owens_t

from defuse.utils.errors import require
from defuse.utils.random import generator

MONTE_CARLO_DRAWS = 200_000


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
    mean: float,
    shift_variance: float,
    noise_variance: float,
    *,
    draws: int = MONTE_CARLO_DRAWS,
    seed: int = 0,
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
