"""Selection on one half of the questions and measurement on the other.

The best of many readings is partly luck. Chosen on one half and reported on the other, it is not.
"""

from collections.abc import Sequence

import torch

from defuse.evaluate import MCAnswer
from defuse.utils.random import generator


def cross_fit(
    readings: Sequence[Sequence[MCAnswer]], seed: int, name: str
) -> tuple[list[MCAnswer], tuple[int, int]]:
    """Return each half of the answers in the reading that is best on the other half.

    `readings` are answers to the same questions in the same order. The best one has the most right
    answers; among equals, the highest log-probability; then the first. The halves are drawn from
    (seed, name). Also returns the numbers of the readings taken for the two halves.
    """
    count = len(readings[0])
    first, second = halves(count, seed, name)
    chosen = (_best(readings, second), _best(readings, first))
    taken = dict.fromkeys(first, chosen[0]) | dict.fromkeys(second, chosen[1])
    return [readings[taken[place]][place] for place in range(count)], chosen


def halves(count: int, seed: int, purpose: str) -> tuple[list[int], list[int]]:
    """Split the numbers below `count` into two halves, drawn from (seed, purpose)."""
    order = torch.randperm(count, generator=generator(seed, "halves", purpose)).tolist()
    return sorted(order[: count // 2]), sorted(order[count // 2 :])


def merit(outcomes: Sequence[MCAnswer], places: Sequence[int]) -> tuple[int, float]:
    """Return a sort key: right answers at `places`, then the sum of their log-probabilities."""
    some = [outcomes[place] for place in places]
    return sum(each.is_correct for each in some), sum(each.answer_logprob for each in some)


def _best(readings: Sequence[Sequence[MCAnswer]], places: Sequence[int]) -> int:
    return max(range(len(readings)), key=lambda number: merit(readings[number], places))
