"""Which texts a training step takes."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from defuse.utils.random import generator

T = TypeVar("T")


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """At most `count` of them (None = all), evenly spread, so that all parts have their share."""
    if count is None or len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def rows(
    turn: int, count: int, batch_size: int, *, seed: int, shuffle: bool, purpose: str
) -> tuple[int, ...]:
    """Rows of a corpus of `count` texts for its batch number `turn` (from 0).

    In order, starting again after the last; with `shuffle` every round through the corpus has an
    order of its own, drawn from (seed, purpose, round).
    """
    places = range(turn * batch_size, (turn + 1) * batch_size)
    if not shuffle:
        return tuple(place % count for place in places)
    orders = {
        lap: torch.randperm(count, generator=generator(seed, "order", purpose, lap)).tolist()
        for lap in {place // count for place in places}
    }
    return tuple(orders[place // count][place % count] for place in places)
