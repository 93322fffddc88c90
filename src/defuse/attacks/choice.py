"""The best of several readings, without the luck of having looked for it."""

from collections.abc import Sequence

import torch

from defuse.evaluate import Outcome
from defuse.schedule import generator


def crosswise(
    readings: Sequence[Sequence[Outcome]], seed: int, name: str
) -> tuple[list[Outcome], tuple[int, int]]:
    """Each half of the questions, in the reading that was best on the other half.

    `readings` are of the same questions in one order. The best has most right answers, of equals
    the highest log-probability, then the first. The halves are drawn from (seed, name). Gives the
    outcomes in the questions' order, and which readings were taken for the two halves.
    """
    count = len(readings[0])
    order = torch.randperm(count, generator=generator(seed, "halves", name)).tolist()
    halves = order[: count // 2], order[count // 2 :]
    chosen = (_best(readings, halves[1]), _best(readings, halves[0]))
    taken = {place: best for half, best in zip(halves, chosen, strict=True) for place in half}
    return [readings[taken[place]][place] for place in range(count)], chosen


def _best(readings: Sequence[Sequence[Outcome]], places: Sequence[int]) -> int:
    def merit(number: int) -> tuple[int, float]:
        outcomes = [readings[number][place] for place in places]
        return (
            sum(outcome.is_correct for outcome in outcomes),
            sum(outcome.answer_logprob for outcome in outcomes),
        )

    return max(range(len(readings)), key=merit)
