"""Tasks side by side, one process a core."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


def side_by_side(
    tasks: Sequence[T],
    work: Callable[[T], None],
    jobs: int,
    set_up: Callable[..., object],
    *arguments: Any,  # noqa: ANN401 (whatever `set_up` takes)
) -> Iterator[T]:
    """Do all tasks, `jobs` at a time; each as it is finished.

    Every process first calls `set_up` with `arguments`. All of it is pickled on its way there.
    """
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (set_up, arguments))
    try:
        waiting = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(waiting):
            future.result()
            yield waiting[future]
    finally:
        # After an error or Ctrl-C: what runs may end its present piece, the rest never starts.
        pool.shutdown(cancel_futures=True)


def _begin(set_up: Callable[..., object], arguments: Sequence[Any]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    set_up(*arguments)


def _end_with_parent() -> None:
    """A killed parent would leave its processes behind, holding what they have locked."""
    parent = parent_process()
    assert parent is not None  # noqa: S101
    parent.join()
    os._exit(1)
