"""Intervals for means over questions and over a few runs that differ in their seed.

Three runs say little about how much runs vary. Conditions of one experiment vary alike, though not
equally, so each one's variance between runs is shrunk towards that of all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from scipy.special import digamma, polygamma
from scipy.stats import t as student
from torch import Tensor

from defuse.statistics import Interval

# What all conditions together say of one's variance counts as at most so many more runs. With more,
# the intervals of conditions that vary more than the others would be too short (docs/stability.md).
MOST_PRIOR = 4.0
SMALLEST_SHARE = 0.01  # of the pooled variance; below it, a logarithm would say more than it knows
NORMAL = 1e6  # degrees of freedom with which Student's t is the normal distribution
# Two heaps: a gap between runs that is wider than both heaps together by this factor.
GAP, SMALLEST_HEAP = 2.0, 2
SMALLEST_GAP = 0.15


@dataclass(frozen=True)
class SeededMean(Interval):
    """A mean over runs and questions with its 95 % interval.

    `error`: its standard error, and `freedom` that error's degrees of freedom; for proportions, on
    the scale of asin √p. `heaps`: the means of the lower and of the upper runs, where the runs fall
    into two heaps, so that their mean describes neither.
    """

    error: float
    freedom: float
    heaps: tuple[float, float] | None = None


def seeded_means(tables: Sequence[Tensor], *, proportions: bool = False) -> list[SeededMean]:
    """The mean of each condition's table, (runs, questions).

    The variance of a mean has three parts: between runs, between questions, and what is left. The
    first is shrunk over the tables (Smyth 2004, "Linear models and empirical Bayes methods"; of one
    run it is that of all the others); the error's degrees of freedom are Satterthwaite's.
    `proportions`: the values are right (1) or wrong (0), or means of such. Their interval is
    computed for asin √p, whose variance hardly depends on p, and lies within 0 and 1.
    """
    parts = [_parts(table.double(), proportions=proportions) for table in tables]
    variances, freedoms = shrink(
        [part.between_runs for part in parts], [part.runs - 1 for part in parts]
    )
    means = []
    for table, part, variance, freedom in zip(tables, parts, variances, freedoms, strict=True):
        means.append(_mean(part, variance, freedom, two_heaps(table), proportions=proportions))
    return means


def shrink(
    variances: Sequence[float], freedoms: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Variances shrunk towards their pool, and their degrees of freedom.

    How far is found from how much the variances differ beyond chance (Smyth 2004, equations 6, 10),
    but the pool counts as no more than `MOST_PRIOR` degrees of freedom. A variance without any
    (one run) becomes the pool's. If none has any, all are 0.
    """
    known = [(v, d) for v, d in zip(variances, freedoms, strict=True) if d > 0]
    total = math.fsum(d for _, d in known)
    if not known:
        return [0.0] * len(variances), [math.inf] * len(variances)
    pool = math.fsum(v * d for v, d in known) / total
    prior = _prior_freedom(known, pool) if len(known) > 1 else 0.0
    shrunk = [
        (prior * pool + d * v) / (prior + d) if d > 0 else pool
        for v, d in zip(variances, freedoms, strict=True)
    ]
    return shrunk, [min(prior + d, total) if d > 0 else max(prior, 1.0) for d in freedoms]


def two_heaps(table: Tensor) -> tuple[float, float] | None:
    """The means of two heaps of runs, (runs, questions), or None.

    Two heaps are at least two runs each, and the gap between them is wide: twice as wide as either
    heap, and 0.15.
    """
    runs = sorted(table.double().mean(dim=1).tolist())
    gaps = [after - before for before, after in pairwise(runs)]
    inner = range(SMALLEST_HEAP, len(runs) - SMALLEST_HEAP + 1)
    if not inner:
        return None
    cut = max(inner, key=lambda place: gaps[place - 1])
    low, high = runs[:cut], runs[cut:]
    widest = max(low[-1] - low[0], high[-1] - high[0])
    if gaps[cut - 1] < max(SMALLEST_GAP, GAP * widest):
        return None
    return math.fsum(low) / len(low), math.fsum(high) / len(high)


def prediction_p_value(published: SeededMean, new: Interval, *, proportions: bool) -> float:
    """How surprising a second experiment's mean is if nothing changed but the draw.

    Student's t for the difference of two independent means with the published error, which is √2
    times as wide as that of one.
    """
    ends = [published.value, new.value]
    if proportions:
        ends = [math.asin(math.sqrt(value)) for value in ends]
    if published.error == 0:
        return float(ends[0] == ends[1])
    ratio = abs(ends[1] - ends[0]) / (math.sqrt(2) * published.error)
    return float(2 * student.sf(ratio, published.freedom))


@dataclass(frozen=True)
class _Parts:
    """A table's mean and the parts of its variance, on the scale where intervals are computed."""

    mean: float
    centre: float
    between_runs: float
    between_questions: float
    rest: float
    runs: int
    questions: int


def _parts(table: Tensor, *, proportions: bool) -> _Parts:
    runs, questions = table.shape
    mean, by_run, by_question = table.mean(), table.mean(dim=1), table.mean(dim=0)
    residual = table - by_run[:, None] - by_question + mean
    rest = float(residual.square().sum()) / max(1, (runs - 1) * (questions - 1))
    between = float(by_question.var()) if questions > 1 else 0.0
    centre, on_scale = mean, by_run
    if proportions:
        # Anscombe (1948): three eighths of a question more on either side keep the ends honest.
        centre, on_scale = (_arcsine(each, questions) for each in (mean, by_run))
        p = (float(mean) * questions + 0.375) / (questions + 0.75)
        slope = 4 * p * (1 - p)  # d(asin √p)² = dp² / slope
        rest /= slope
        # All right, or all wrong: nothing tells how alike the runs' questions are.
        between = min(0.25, (between + 0.25 / questions) / slope) if 0 < mean < 1 else 0.25
    return _Parts(
        float(mean),
        float(centre),
        float(on_scale.var()) if runs > 1 else 0.0,
        between,
        rest,
        runs,
        questions,
    )


def _arcsine(proportion: Tensor, n: int) -> Tensor:
    return ((proportion * n + 0.375) / (n + 0.75)).sqrt().asin()


def _mean(
    part: _Parts,
    variance: float,
    freedom: float,
    heaps: tuple[float, float] | None,
    *,
    proportions: bool,
) -> SeededMean:
    runs, questions = variance / part.runs, part.between_questions / part.questions
    # Both contain what is left, which counts once.
    rest = part.rest / (part.runs * part.questions)
    error = math.sqrt(max(runs, questions, runs + questions - rest))
    degrees = _satterthwaite((runs, freedom), (questions, part.questions - 1))
    half = float(student.ppf(0.975, degrees)) * error if error else 0.0
    low, high = part.centre - half, part.centre + half
    if proportions:
        low, high = math.sin(max(0.0, low)) ** 2, math.sin(min(math.pi / 2, high)) ** 2
    return SeededMean(part.mean, min(part.mean, low), max(part.mean, high), error, degrees, heaps)


def _satterthwaite(*parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of variances, each with its own."""
    total = math.fsum(variance for variance, _ in parts)
    spread = math.fsum(variance**2 / max(freedom, 1.0) for variance, freedom in parts)
    return min(total**2 / spread, NORMAL) if spread else NORMAL


def _prior_freedom(known: Sequence[tuple[float, float]], pool: float) -> float:
    """How many degrees of freedom the pool of variances is worth to each of them."""
    if pool == 0:
        return MOST_PRIOR
    logs = [
        math.log(max(v, SMALLEST_SHARE * pool)) - float(digamma(d / 2)) + math.log(d / 2)
        for v, d in known
    ]
    by_chance = math.fsum(float(polygamma(1, d / 2)) for _, d in known) / len(known)
    beyond = float(torch.tensor(logs, dtype=torch.float64).var()) - by_chance
    if beyond <= float(polygamma(1, MOST_PRIOR / 2)):
        return MOST_PRIOR
    return 2 * _inverse_trigamma(beyond)


def _inverse_trigamma(value: float) -> float:
    """The x at which trigamma(x) is `value` (Newton's method; Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        there = float(polygamma(1, x))
        change = there * (1 - there / value) / float(polygamma(2, x))
        x += change
        if abs(change) < 1e-10 * x:
            break
    return x
