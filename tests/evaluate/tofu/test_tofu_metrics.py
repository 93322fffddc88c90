"""TOFU's figures on cases made by hand; every number is derived in its docstring."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from defuse.evaluate.tasks.tofu.metrics import (
    forget_quality,
    model_utility,
    probability,
    probability_among,
    rouge_l_recall,
    truth_forgotten,
    truth_ratio,
    truth_retained,
)

LOGS = st.floats(-30, 0)


def test_probability_is_the_length_th_root() -> None:
    """Three tokens of probability 1/2, 1/4 and 1/8: (1/64)^(1/3) = 1/4."""
    logprob = (math.log(1 / 2) + math.log(1 / 4) + math.log(1 / 8)) / 3
    assert probability(logprob) == pytest.approx(1 / 4)


def test_probability_among_the_answers_given() -> None:
    """0.5 against 0.25, 0.125 and 0.125: 0.5 / 1."""
    wrong = [math.log(p) for p in (0.25, 0.125, 0.125)]
    assert probability_among(math.log(0.5), wrong) == pytest.approx(0.5)


def test_probability_among_improbable_answers_does_not_vanish() -> None:
    """e^-1000 against e^-1001: 1 / (1 + 1/e)."""
    assert probability_among(-1000, [-1001]) == pytest.approx(1 / (1 + math.exp(-1)))


def test_truth_ratio_by_both_means() -> None:
    """Wrong 0.4 and 0.1, paraphrased 0.5: (0.5 / 2) / 0.5 = 0.5, and √0.04 / 0.5 = 0.4."""
    wrong = [math.log(0.4), math.log(0.1)]
    assert truth_ratio(math.log(0.5), wrong) == pytest.approx(0.5)
    assert truth_ratio(math.log(0.5), wrong, "geometric") == pytest.approx(0.4)


def test_truth_ratio_of_a_very_sure_model_stays_finite() -> None:
    assert truth_ratio(-2000, [-1, -2]) == math.exp(700)
    assert truth_ratio(-1, [-2000, -3000]) == 0


@given(LOGS, st.lists(LOGS, min_size=1, max_size=6))
def test_the_geometric_ratio_is_never_the_larger(right: float, wrong: list[float]) -> None:
    geometric = truth_ratio(right, wrong, "geometric")
    assert geometric <= truth_ratio(right, wrong) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("ratio", "retained", "forgotten"),
    [(0.0, 1.0, 0.0), (0.25, 0.75, 0.25), (1, 0, 1), (4, 0, 0.25)],
)
def test_truth_on_the_retain_sets_and_on_the_forget_set(
    ratio: float, retained: float, forgotten: float
) -> None:
    assert truth_retained(ratio) == retained
    assert truth_forgotten(ratio) == forgotten


def test_rouge_l_recall_counts_the_answer_s_words_in_order() -> None:
    """Answer "the cat sat on the mat" (6 words). Written "a cat was sitting on a mat": in order
    come cat, on, mat, so 3/6; "sat" and "sitting" have other stems, "cats" and "cat" the same.
    """
    assert rouge_l_recall("the cat sat on the mat", "a cat was sitting on a mat") == 0.5
    assert rouge_l_recall("the cats", "the cat") == 1
    assert rouge_l_recall("one two", "two one") == 0.5
    assert rouge_l_recall("one two", "nothing, then two, one and two again") == 1
    assert rouge_l_recall("one", "") == 0


def test_forget_quality_of_like_and_unlike_ratios() -> None:
    """Equal samples: D = 0, p = 1. Three below three: D = 1, and of the 6!/(3!·3!) = 20 orders
    only 2 are as far apart, p = 0.1.
    """
    same = forget_quality([0.2, 0.5, 0.9], [0.2, 0.5, 0.9])
    assert (same.p_value, same.statistic) == (1, 0)
    other = forget_quality([0.1, 0.2, 0.3], [0.7, 0.8, 0.9])
    assert other.statistic == 1
    assert other.p_value == pytest.approx(0.1)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=20))
def test_forget_quality_is_that_of_the_reciprocals(ratios: list[float]) -> None:
    other = [1.0, 2.0, 0.5]
    reciprocal = ks_2samp([1 / r for r in ratios], [1 / r for r in other])
    assert forget_quality(ratios, other).p_value == pytest.approx(reciprocal.pvalue)  # type: ignore[attr-defined]


def test_model_utility_is_the_harmonic_mean() -> None:
    """Six halves and three thirds: 9 / (6·2 + 3·3) = 3/7. One nothing spoils all."""
    assert model_utility([0.5] * 6 + [1 / 3] * 3) == pytest.approx(3 / 7)
    assert model_utility([0.5] * 8 + [0.0]) == 0
