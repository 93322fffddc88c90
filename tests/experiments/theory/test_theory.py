"""Flip rates against their limits, an independent integral, and a Monte Carlo."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from defuse.experiments.theory.rates import flip_rate, isotropic_flip_rate, monte_carlo_flip_rate
from defuse.utils.errors import UsageError

variances = st.floats(0.01, 100)
means = st.floats(-10, 10)


def test_equal_variances_reverse_a_quarter_of_the_effects_and_no_noise_reverses_none():
    assert isotropic_flip_rate(1, 1) == pytest.approx(0.25)
    assert isotropic_flip_rate(1, 0) == 0
    assert isotropic_flip_rate(0, 1) == pytest.approx(0.5)
    # √3 times the spread: arctan √3 = π/3.
    assert isotropic_flip_rate(1, 3) == pytest.approx(1 / 3)


@given(eta=variances, nu=variances)
def test_the_isotropic_rate_is_the_general_one_without_a_mean(eta, nu):
    other = 0.5 - math.atan(math.sqrt(eta / nu)) / math.pi
    assert isotropic_flip_rate(eta, nu) == pytest.approx(other, abs=1e-12)
    assert flip_rate(0, eta, nu) == pytest.approx(other, abs=1e-12)


@given(mean=means, s2=variances, n2=variances)
@example(mean=2.2250738585072014e-308, s2=0.01, n2=1.0)
def test_the_general_rate_is_the_integral_over_the_forget_token_s_effect(mean, s2, n2):
    s, n = math.sqrt(s2), math.sqrt(n2)

    def turned(x: float) -> float:
        return float(norm.pdf(x, mean, s) * norm.cdf(-abs(x) / n))

    spread = 12 * s
    # Between two points that nearly coincide the integrator cannot bisect.
    points = [0.0, mean] if abs(mean) > 1e-9 * s else [0.0]
    expected = quad(turned, mean - spread, mean + spread, points=points, limit=400)[0]
    assert flip_rate(mean, s2, n2) == pytest.approx(expected, abs=1e-6)


@given(mean=means, s2=variances, n2=variances)
def test_a_mean_of_either_sign_lowers_the_rate(mean, s2, n2):
    rate = flip_rate(mean, s2, n2)
    assert rate <= isotropic_flip_rate(s2, n2) + 1e-12
    assert rate == pytest.approx(flip_rate(-mean, s2, n2), abs=1e-12)


def test_a_constant_effect_is_reversed_by_the_tail_of_the_noise():
    assert flip_rate(1.0, 0, 4.0) == pytest.approx(norm.cdf(-0.5))
    assert flip_rate(1.0, 4.0, 0) == 0


@pytest.mark.parametrize(("mean", "s2", "n2"), [(0, 1, 1), (1.5, 2, 0.5), (-3, 1, 4), (0.2, 0, 1)])
def test_the_monte_carlo_agrees_within_its_error(mean, s2, n2):
    rate, error = monte_carlo_flip_rate(mean, s2, n2, draws=200_000)
    assert abs(rate - flip_rate(mean, s2, n2)) < 4 * error + 1e-9
    assert monte_carlo_flip_rate(mean, s2, n2, draws=200_000) == (rate, error)


@pytest.mark.parametrize(("eta", "nu"), [(-1, 1), (1, math.inf), (math.nan, 1), (0, 0)])
def test_impossible_variances_are_refused(eta, nu):
    with pytest.raises(UsageError, match="variance"):
        isotropic_flip_rate(eta, nu)
