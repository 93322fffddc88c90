"""Intervals for means over few seeds."""

import math

import numpy as np
import pytest
import torch
from dev.coverage import measure
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import polygamma
from scipy.stats import t as student

from defuse.few_seeds import MOST_PRIOR, prediction_p_value, seeded_means, shrink, two_heaps


def table(*runs: float, questions: int = 1000) -> torch.Tensor:
    """Runs with the given shares of right answers, spread over the questions alike."""
    return torch.tensor([[float(q < r * questions) for q in range(questions)] for r in runs])


def test_one_condition_whose_questions_are_alike_has_students_interval_over_runs() -> None:
    values = [0.2, 0.5, 0.3]
    (mean,) = seeded_means([torch.tensor([[v] * 40 for v in values])])
    half = student.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert mean.value == pytest.approx(1 / 3)
    assert mean.high - mean.value == pytest.approx(half)
    assert mean.freedom == pytest.approx(2)


def test_runs_that_answer_alike_have_students_interval_over_questions() -> None:
    values = [0.0, 1.0, 0.5, 0.25, 1.0]
    (mean,) = seeded_means([torch.tensor([values] * 3)])
    half = student.ppf(0.975, 4) * np.std(values, ddof=1) / math.sqrt(5)
    assert mean.high - mean.value == pytest.approx(half)


def test_what_runs_and_questions_share_counts_once() -> None:
    """Owen (2007): of values without any effect of run or question, the error is σ/√(R·Q)."""
    values = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    (mean,) = seeded_means([values])
    assert mean.error == pytest.approx(1 / math.sqrt(400 * 500), rel=0.1)


def test_variances_are_shrunk_halfway_where_prior_and_own_freedom_are_equal() -> None:
    alike = [0.9, 1.0, 1.1, 1.0]
    shrunk, freedoms = shrink(alike, [4] * 4)
    assert shrunk == pytest.approx([(v + 1) / 2 for v in alike])
    assert freedoms == [4 + MOST_PRIOR] * 4


def test_variances_of_different_kinds_are_shrunk_less() -> None:
    """Smyth (2004): d₀ = 2 ψ′⁻¹(var(log s² − ψ(d/2) + log(d/2)) − ψ′(d/2)), here by bisection."""
    variances = [1e-3, 1.0, 1e3, 10.0]
    shrunk, freedoms = shrink(variances, [4] * 4)
    beyond = np.var(np.log(np.maximum(variances, 0.01 * np.mean(variances))), ddof=1)
    beyond -= np.pi**2 / 6 - 1  # ψ′(2)
    low, high = 1e-6, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if polygamma(1, middle / 2) > beyond else (low, middle)
    pool = np.mean(variances)
    assert freedoms[0] == pytest.approx(4 + low)
    assert shrunk == pytest.approx([(low * pool + 4 * v) / (low + 4) for v in variances])


def test_a_single_run_has_the_variance_of_the_others() -> None:
    runs = torch.tensor([[0.2] * 30, [0.5] * 30, [0.3] * 30])
    alone, _ = seeded_means([runs[:1], runs])
    assert alone.error == pytest.approx(float(runs[:, 0].double().std()))
    (nothing_known,) = seeded_means([runs[:1]])
    assert nothing_known.error == 0


def test_proportions_stay_within_their_bounds_and_surround_the_mean() -> None:
    right, wrong, mixed = seeded_means(
        [table(1.0, 1.0, 1.0), table(0.0, 0.0, 0.0), table(0.5, 0.55, 0.45)], proportions=True
    )
    assert right.value == right.high == 1
    assert 0.9 < right.low < 1
    assert wrong.low == 0 < wrong.high < 0.1
    assert 0.3 < mixed.low < 0.5 < mixed.high < 0.7


@given(
    st.lists(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4),
             min_size=1, max_size=4),
    st.booleans(),
)  # fmt: skip
def test_every_table_has_an_interval_around_its_mean(
    tables: list[list[list[bool]]], proportions: bool
) -> None:
    given = [torch.tensor(each, dtype=torch.float64) for each in tables]
    for mean, values in zip(seeded_means(given, proportions=proportions), given, strict=True):
        assert mean.value == pytest.approx(float(values.mean()))
        assert mean.low <= mean.value <= mean.high
        assert math.isfinite(mean.high - mean.low)


def test_two_heaps_are_found_and_told() -> None:
    assert two_heaps(table(0.40, 0.43, 0.82, 0.85, 0.80)) == pytest.approx(
        (0.415, 0.8233), abs=1e-3
    )
    assert two_heaps(table(0.40, 0.81, 0.82, 0.85, 0.80)) is None  # one run is no heap
    assert two_heaps(table(0.43, 0.82, 0.83)) is None  # three runs cannot tell
    assert two_heaps(table(0.40, 0.50, 0.60, 0.70)) is None
    assert two_heaps(table(0.99, 0.99, 1.0, 1.0)) is None


def test_a_prediction_is_the_square_root_of_two_wider_than_the_interval() -> None:
    (published,) = seeded_means([torch.tensor([[0.2] * 40, [0.5] * 40, [0.3] * 40])])
    half = published.high - published.value
    at = published.value + math.sqrt(2) * half
    (other,) = seeded_means([torch.full((1, 40), at)])
    assert prediction_p_value(published, other, proportions=False) == pytest.approx(0.05)
    assert prediction_p_value(published, published, proportions=False) == 1


@pytest.mark.parametrize(("runs", "at_least"), [(3, 0.90), (5, 0.93), (10, 0.93)])
def test_intervals_contain_the_truth_as_often_as_promised(runs: int, at_least: float) -> None:
    """In an invented experiment with the lab's accuracies and spreads between runs."""
    found = measure(runs, questions=135, repeats=60, seed=runs)
    assert found.accuracy >= at_least
    assert found.difference >= at_least
    assert found.false_heaps <= 0.05
