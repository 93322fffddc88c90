"""Tests of whether some words disturb more than others; words are the sampling unit."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import hypergeom, mannwhitneyu

from defuse.evaluate import Interval
from defuse.statistics import Z

TINY = 1e-12


@dataclass(frozen=True)
class RankTest:
    """Mann-Whitney: `auc` is the probability that one of the first exceeds one of the others (ties
    count half); `u` is the number of pairs in which it does; `p_value` is two-sided."""

    first: int
    others: int
    u: float
    p_value: float
    auc: Interval


def rank_test(first: Sequence[float], others: Sequence[float]) -> RankTest:
    """Compare two samples of numbers by rank."""
    values = {*first, *others}
    u, p = (
        mannwhitneyu(first, others, alternative="two-sided")
        if len(values) > 1
        else (len(first) * len(others) / 2, 1.0)  # all are tied
    )
    auc = auc_interval(float(u) / (len(first) * len(others)), len(first), len(others))
    return RankTest(len(first), len(others), float(u), float(p), auc)


def auc_interval(auc: float, m: int, n: int) -> Interval:
    """Newcombe (2006), Statistics in Medicine 25, 559-573, method 5: the θ with
    |θ − auc| = z √V(θ), V(θ) = θ(1 − θ) (1 + N ((1 − θ)/(2 − θ) + θ/(1 + θ))) / (m n),
    N = (m + n)/2 − 1. It has a width even if the samples do not overlap."""

    def gap(theta: float) -> float:
        spread = 1 + ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - auc) ** 2 - Z**2 * theta * (1 - theta) * spread / (m * n)

    # At 0 and 1 the gap is 0 for any auc: the roots wanted are on either side of `inside`.
    inside = min(max(auc, TINY), 1 - TINY)
    low, high = brentq(gap, 0.0, inside), brentq(gap, inside, 1.0)
    return Interval(auc, min(float(low), auc), max(float(high), auc))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Enrichment:
    """Of `total` words `kind` are of one kind; of the `drawn` ones `marked` are. `p_value`: the
    probability of as many by chance (hypergeometric, one-sided, Fisher's exact test)."""

    total: int
    kind: int
    drawn: int
    marked: int
    p_value: float

    @property
    def expected(self) -> float:
        """The number expected by chance."""
        return self.drawn * self.kind / self.total


def enrichment(total: int, kind: int, drawn: int, marked: int) -> Enrichment:
    """Test whether a kind is more frequent among the drawn than among all."""
    return Enrichment(
        total, kind, drawn, marked, float(hypergeom.sf(marked - 1, total, kind, drawn))
    )
