"""Which texts a step takes, and the one source of randomness.

Every draw of the project comes from a generator seeded by what it is for, so that no draw shifts
another and neither the batch size nor the number of processes changes a result.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def generator(seed: int, *purpose: str | int, device: str = "cpu") -> torch.Generator:
    """A generator of its own for (seed, purpose): the same in every run on such a device."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


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
