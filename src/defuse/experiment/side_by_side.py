"""Tasks side by side, one process a core."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
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
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), set_up, arguments)
    try:
        waiting = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(waiting):
            future.result()
            yield waiting[future]
    finally:
        # After an error or Ctrl-C: what runs may end its present piece, the rest never starts.
        pool.shutdown(cancel_futures=True)
