"""The best of several readings, without the luck of having looked for it."""

from collections.abc import Sequence

import torch

from defuse.evaluate import MCAnswer
from defuse.utils.random import generator


def crosswise(
    readings: Sequence[Sequence[MCAnswer]], seed: int, name: str
) -> tuple[list[MCAnswer], tuple[int, int]]:
    """Each half of the questions, in the reading that was best on the other half.

    `readings` are of the same questions in one order. The best has most right answers, of equals
    the highest log-probability, then the first. The halves are drawn from (seed, name). Gives the
    outcomes in the questions' order, and which readings were taken for the two halves.
    """
    count = len(readings[0])
    first, second = halves(count, seed, name)
    chosen = (_best(readings, second), _best(readings, first))
    taken = dict.fromkeys(first, chosen[0]) | dict.fromkeys(second, chosen[1])
    return [readings[taken[place]][place] for place in range(count)], chosen


def _best(readings: Sequence[Sequence[MCAnswer]], places: Sequence[int]) -> int:
    return max(range(len(readings)), key=lambda number: merit(readings[number], places))


def halves(count: int, seed: int, purpose: str) -> tuple[list[int], list[int]]:
    """Numbers below `count` in two halves, drawn from (seed, purpose): what is chosen on one is
    measured on the other."""
    order = torch.randperm(count, generator=generator(seed, "halves", purpose)).tolist()
    return sorted(order[: count // 2]), sorted(order[count // 2 :])


def merit(outcomes: Sequence[MCAnswer], places: Sequence[int]) -> tuple[int, float]:
    """What is better the higher it is: right answers there, of equals their log-probability."""
    some = [outcomes[place] for place in places]
    return sum(each.is_correct for each in some), sum(each.answer_logprob for each in some)
