"""Worker processes of this machine, which end with their parent."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import torch

Submit = Callable[..., Future[Any]]  # of a function and its arguments


def available_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def begin_worker(threads: int = 1) -> None:
    """Set up a worker process: so many threads, and an end when its parent is killed."""
    if parent_process() is not None:  # Ray ends its own
        Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


@contextmanager
def local_workers(count: int, begin: Callable[[], object] = begin_worker) -> Iterator[Submit]:
    """Submit calls to `count` processes of this machine, each set up by `begin`."""
    pool = ProcessPoolExecutor(count, get_context("spawn"), begin)
    try:
        yield pool.submit
    finally:
        # After an error or Ctrl-C, what has not started never does.
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when its parent is killed, or it would keep what it has locked."""
    parent = parent_process()
    assert parent is not None  # noqa: S101 (begin_worker)
    parent.join()
    os._exit(1)
