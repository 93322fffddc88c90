"""Rows of a corpus: an evenly spread part, and those of each training step."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from defuse.utils.random import generator

T = TypeVar("T")


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """At most `count` items (None = all), evenly spread over the whole."""
    if count is None or len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def rows(
    number: int, count: int, batch_size: int, *, seed: int, shuffle: bool, purpose: str
) -> tuple[int, ...]:
    """Rows of a corpus of `count` texts for its batch `number` (from 0).

    Rows come in order and start again after the last one. With `shuffle` every epoch has its own
    order, drawn from (seed, purpose, epoch).
    """
    places = range(number * batch_size, (number + 1) * batch_size)
    if not shuffle:
        return tuple(place % count for place in places)
    orders = {
        epoch: torch.randperm(count, generator=generator(seed, "order", purpose, epoch)).tolist()
        for epoch in {place // count for place in places}
    }
    return tuple(orders[place // count][place % count] for place in places)
