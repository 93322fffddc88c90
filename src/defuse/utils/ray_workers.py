"""Processes on Ray, on this machine or on a cluster, which carry out calls as an executor's do.

Ray's actors are used, and not its tasks: an actor keeps its reference model from run to run, and
its GPU. Ray has no executor that knows which call killed a process, or which process has a place.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

from defuse.utils.errors import UsageError
from defuse.utils.workers import Submit

OBJECT_STORE_BYTES = 2**27  # records and questions go through it, no models
TRIES = 2  # of a call whose process dies
PATIENCE_SECONDS = 10


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """A Ray session of our own, quiet and ended afterwards; the caller's, if there is one.

    `address`: of a cluster; None starts Ray on this machine, with `cpus` (None: all of them).
    Raises UsageError where no cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # When this process is killed, Ray's agents wait for so long before they end.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(PATIENCE_SECONDS))
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": cpus, "include_dashboard": False}
        options |= {"object_store_memory": OBJECT_STORE_BYTES}
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    try:
        if colon:  # where nobody listens, Ray itself would go on trying for minutes
            socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS).close()
        ray.init(address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        where, reason = address or "this machine", str(error).strip().splitlines()[0]
        raise UsageError(f"address: Ray does not answer at {where} ({reason})") from error
    try:
        yield
    finally:
        ray.shutdown()


def fitting(cpus: int, gpus: float, *, grows: bool) -> int:
    """How many processes of so many CPUs and GPUs have a place in the session at a time.

    At least one where it `grows`, as a cluster may. Raises UsageError where there is no place.
    """
    import ray

    there = ray.cluster_resources()
    wanted = {"CPU": cpus, "GPU": gpus}
    fit = min(int(there.get(name, 0) / each) for name, each in wanted.items() if each)
    if fit == 0 and not grows:
        raise UsageError(
            f"cpus, gpus: {cpus} and {gpus:g} for each run, but this machine has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}; ask for less"
        )
    return max(1, fit)


class _Process:
    """A process of Ray. Nothing heavy happens before its first call, so that it can fail."""

    def __init__(self, begin: Callable[[], object]) -> None:
        self._begin: Callable[[], object] | None = begin

    def ready(self) -> None:
        """Return as soon as the process has a place to run in."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        if self._begin is not None:
            self._begin()
            self._begin = None
        return function(*arguments)


@contextmanager
def ray_workers(
    count: int, begin: Callable[[], object], cpus: int = 1, gpus: float = 0
) -> Iterator[Submit]:
    """Submit calls to `count` processes, each set up by `begin`; they end with the block.

    A process gets its next call when it is free, and none before it has a place. Ray starts a
    process that died again, and tries its call once more; then the call's result is a UsageError.
    """
    import ray

    actor = ray.remote(_Process).options(
        num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=TRIES - 1
    )
    processes: list[Any] = [actor.remote(begin) for _ in range(count)]
    free: SimpleQueue[Any] = SimpleQueue()
    for process in processes:
        place = process.ready.remote().future()
        place.add_done_callback(lambda _, process=process: free.put(process))
    pool = ThreadPoolExecutor(count)
    try:
        yield partial(pool.submit, _call, free)
    finally:
        for process in processes:
            ray.kill(process)
        pool.shutdown(cancel_futures=True)


def _call(free: SimpleQueue[Any], function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
    """The result of a call in the first process that is free."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    process = free.get()
    try:
        return ray.get(process.call.remote(function, *arguments))
    except RayTaskError as error:
        raise error.cause from error  # what the function itself raised
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"the process died {TRIES} times ({type(error).__name__}: {reason}); if memory ran "
            "out, take fewer --jobs"
        ) from error
    finally:
        free.put(process)
