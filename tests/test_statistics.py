"""Intervals and tests against published figures, other implementations and their own coverage."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, bootstrap

from defuse.statistics import (
    bootstrap_mean,
    compare,
    mcnemar,
    newcombe_paired,
    vulnerability,
    wilson,
)

COUNT = st.integers(0, 40)


@given(st.integers(1, 300), st.data())
def test_wilson_equals_scipys(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    ours = wilson(successes, n)
    theirs = binomtest(successes, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Newcombe (1998), method 10, and the airway example of Fagerland et al. (2014).
        ((36, 12, 2, 0), (0.2000, 0.0569, 0.3404)),
        ((20, 12, 2, 16), (0.2000, 0.0562, 0.3292)),
        ((1, 1, 7, 12), (-0.286, -0.507, -0.026)),
    ],
)
def test_newcombe_equals_published_figures(
    table: tuple[int, int, int, int], expected: tuple[float, float, float]
) -> None:
    interval = newcombe_paired(*table)
    digits = 3 if table == (1, 1, 7, 12) else 4
    found = (interval.value, interval.low, interval.high)
    assert tuple(round(value, digits) for value in found) == expected


@given(COUNT, COUNT, COUNT, st.integers(1, 40))
def test_newcombe_stays_in_range_and_turns_with_its_arguments(
    both: int, first: int, second: int, neither: int
) -> None:
    interval = newcombe_paired(both, first, second, neither)
    turned = newcombe_paired(both, second, first, neither)
    assert -1 <= interval.low <= interval.value <= interval.high <= 1
    assert (turned.low, turned.high) == pytest.approx((-interval.high, -interval.low))


def test_newcombe_covers_the_true_difference() -> None:
    """Paired answers of 100 questions, right with 0.7 and 0.6, both with 0.5: 95 ± 2 % of 1000."""
    draw, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        interval = newcombe_paired(*draw.multinomial(100, [0.5, 0.2, 0.1, 0.2]).tolist())
        covered += interval.low <= 0.1 <= interval.high
    assert 0.93 <= covered / 1000 <= 0.97


@given(COUNT, COUNT)
def test_mcnemar_is_the_doubled_binomial_tail(first: int, second: int) -> None:
    tail = binom.cdf(min(first, second), first + second, 0.5)
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_compare_counts_the_table_by_hand() -> None:
    """Right: first on 1, 2, 3, second on 1 and 5 of five: 2 only first, 1 only second, p = 1."""
    paired = compare([True, True, True, False, False], [True, False, False, False, True])
    assert (paired.only_first, paired.only_second, paired.p_value) == (2, 1, 1.0)
    assert paired.difference == newcombe_paired(1, 2, 1, 1)
    assert paired.difference.value == pytest.approx(0.2)


def test_the_bootstrap_agrees_with_scipys_and_with_theory() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    ours = bootstrap_mean(values, seed=1)
    theirs = bootstrap((values.numpy(),), lambda x, axis: x.mean(axis), method="percentile")
    low, high = theirs.confidence_interval
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert ours.value == pytest.approx(float(values.mean()))
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.01)
    assert (ours.low, ours.high) == pytest.approx((ours.value - half, ours.value + half), abs=0.01)
    assert ours == bootstrap_mean(values, seed=1)
    assert ours != bootstrap_mean(values, seed=2)


def test_the_crossed_bootstrap_sees_that_runs_differ() -> None:
    """Two runs a distance of 1 apart: resampled runs have means 0, ½ and 1 with ¼, ½, ¼."""
    one = torch.zeros(50)
    interval = bootstrap_mean(torch.stack([one, one + 1]), seed=0)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)
    alike = bootstrap_mean(torch.stack([one, one]), seed=0)
    assert (alike.low, alike.high) == (0.0, 0.0)


def test_one_question_has_an_interval_of_no_width_and_no_nan() -> None:
    interval = bootstrap_mean([0.25], seed=0)
    assert (interval.low, interval.value, interval.high) == (0.25, 0.25, 0.25)


def test_vulnerability_by_hand_for_one_run_and_for_several() -> None:
    """Control − forget: 1, 0, 0 and 1, 1, 0; reference 0, 0, −1: so 1, 0, 1 and 1, 1, 1."""
    control, forget = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[0, 1, 0], [0, 0, 1]])
    reference = [True, False, False], [True, False, True]
    one = vulnerability(control[0], forget[0], *reference, 3)
    assert one == bootstrap_mean([1.0, 0.0, 1.0], 3)
    both = vulnerability(control, forget, *reference, 3)
    assert both == bootstrap_mean(torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), 3)
