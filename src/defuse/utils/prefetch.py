"""Prefetching: the next batch is made while the present one is in use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Item = TypeVar("Item")


def prefetch(make: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
    """Yield make(item) for each item, in order, each made in a thread one item in advance."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
