"""Intervals and tests for accuracies and means on a set of questions.

All intervals are at 95 %. Questions are the sampling unit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest, norm
from torch import Tensor

from defuse.utils.random import generator

Z = float(norm.ppf(0.975))
RESAMPLES = 4000
BLOCK = 2**22  # numbers that are resampled at once


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Accuracy of the first minus the second on the same questions.

    `only_first`, `only_second`: the numbers of questions that one of the two alone has right.
    `p_value`: McNemar's exact test.
    """

    difference: Interval
    only_first: int
    only_second: int
    p_value: float


def wilson(successes: int, n: int) -> Interval:
    """The interval of one proportion (Wilson 1927)."""
    p = successes / n
    scale = 1 + Z**2 / n
    centre = (p + Z**2 / (2 * n)) / scale
    half = Z / scale * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # Rounding must not move an end past 0, 1 or the estimate.
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def compare(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two accuracies on the same questions: Newcombe's interval, McNemar's exact test."""
    table = torch.zeros(2, 2, dtype=torch.long)
    for one, other in zip(first, second, strict=True):
        table[int(not one), int(not other)] += 1
    (both, only_first), (only_second, neither) = table.tolist()
    return Paired(
        difference=newcombe_paired(both, only_first, only_second, neither),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def newcombe_paired(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """The difference of two paired proportions: method 10 of Newcombe (1998).

    Statistics in Medicine 17, 2635-2650: the squares of Wilson's half-widths are added, with the
    correlation φ of the two proportions. A positive numerator of φ is reduced by n/2, but not below
    0.
    """
    n = both + only_first + only_second + neither
    one, two = wilson(both + only_first, n), wilson(both + only_second, n)
    phi = _phi(both, only_first, only_second, neither)

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    value = (only_first - only_second) / n
    low = value - distance(one.value - one.low, two.high - two.value)
    high = value + distance(one.high - one.value, two.value - two.low)
    return Interval(value, low, high)


def _phi(both: int, only_first: int, only_second: int, neither: int) -> float:
    n = both + only_first + only_second + neither
    margins = (both + only_first, only_second + neither, both + only_second, only_first + neither)
    product = math.prod(margins)
    if product == 0:
        return 0.0
    numerator = both * neither - only_first * only_second
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)
    return numerator / math.sqrt(product)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value of equal chances; 1 if no question is discordant."""
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


Values = Sequence[float] | Tensor


def vulnerability(
    control: Values, forget: Values, reference_control: Values, reference_forget: Values, seed: int
) -> Interval:
    """The harm of a forget-token beyond its control's, in the unlearned model beyond the reference.

    (unlearned − reference) of (control − forget), the mean over questions; 0 if unlearning made no
    question worse. The arguments hold accuracy (0 or 1) or log-probability of the same questions
    with the control token and with the forget-token: (questions,), or (runs, questions) for runs
    that differ in their seed. One reference model serves all runs. The interval is
    `bootstrap_mean`'s.
    """
    return added_difference(control, forget, reference_control, reference_forget, seed)


def added_difference(
    first: Values, second: Values, reference_first: Values, reference_second: Values, seed: int
) -> Interval:
    """(unlearned − reference) of (first − second): what unlearning adds to a difference.

    The arguments hold values of the same questions in two variants, as for `vulnerability`. With
    the original and the control question it is the harm of any sentence.
    """
    own = _float64(first) - _float64(second)
    reference = _float64(reference_first) - _float64(reference_second)
    return bootstrap_mean(own - reference, seed)


def _float64(values: Values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def bootstrap_mean(values: Values, seed: int) -> Interval:
    """The mean over questions with its percentile bootstrap interval.

    `values` is (questions,), or (runs, questions) of the same questions in runs that differ in
    their seed. In the second case both runs and questions are resampled (Owen 2007, "The pigeonhole
    bootstrap"), and the interval covers both.
    """
    table = _float64(values)
    table = table[None] if table.ndim == 1 else table
    rows, columns = table.shape
    draws = generator(seed, "bootstrap", rows, columns)
    block = max(1, BLOCK // columns)
    means = []
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        runs = torch.randint(rows, (count, rows), generator=draws)
        weights = torch.zeros(count, rows, dtype=torch.float64)
        weights.scatter_add_(1, runs, torch.full(runs.shape, 1 / rows, dtype=torch.float64))
        picked = torch.randint(columns, (count, columns), generator=draws)
        means.append((weights @ table).gather(1, picked).mean(dim=1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(float(table.mean()), float(low), float(high))
