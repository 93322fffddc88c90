"""The next batch is made while the present one is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Turn = TypeVar("Turn")


def ahead(make: Callable[[Turn], T], turns: Iterable[Turn]) -> Iterator[T]:
    """make(turn) for each turn, in order, each made in a thread while the one before is in use."""
    coming: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for turn in turns:
            coming.append(pool.submit(make, turn))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
