"""Ray sessions and workers: places for processes, on this machine or on a cluster.

Ray's actors are used, and not Ray Tune or Ray Data: an actor keeps its reference model from run to
run, and a run that kills its process is known by name.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defuse.models.load import resolve_device
from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError

if TYPE_CHECKING:
    from defuse.experiments.core.scenario import Scenario

OBJECT_STORE_BYTES = 2**27  # records and questions go through it, no models
TRIES = 2  # of a run whose process dies
PATIENCE_SECONDS = 10


@dataclass(frozen=True)
class Resources:
    """`address`: of a Ray cluster; None starts one on this machine for the sweep alone.

    `workers`: runs at a time; None is as many as fit. Each has `cpus` threads and `gpus` GPUs; None
    is one GPU where the recipe's device is one on this machine.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float | None = None


def check_resources(resources: Resources, runner: str = "ray") -> None:
    """Raise UsageError for numbers that make no sense, and where Ray is wanted but missing."""
    if runner == "ray" and find_spec("ray") is None:
        raise UsageError(f"sweep: needs Ray, which is not installed; {install_hint('ray')}")
    for field, least in (("workers", 1), ("cpus", 1), ("gpus", 0)):
        value = getattr(resources, field)
        if value is not None and value < least:
            raise UsageError(f"{field}: is {value}; give {least} or more")


@contextmanager
def connected(resources: Resources) -> Iterator[None]:
    """A Ray session of our own, quiet and ended afterwards; the caller's, if there is one.

    Raises UsageError where no cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if resources.address is None:
        workers = resources.workers
        ray.init(
            "local",
            num_cpus=None if workers is None else workers * resources.cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
    else:
        _connect(resources.address, quiet)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def started_workers(
    kind: type,
    resources: Resources,
    runs: int,
    *arguments: Any,  # noqa: ANN401 (Ray's handles have no public type)
) -> Iterator[list[Any]]:
    """Workers for at most `runs` runs at a time, made with `arguments`; they end with the block.

    Raises UsageError where not even one fits. Ray starts a worker that died again, and gives it its
    run once more.
    """
    import ray

    there = ray.cluster_resources()
    fit = int(there.get("CPU", 0) // resources.cpus)
    if resources.gpus:
        fit = min(fit, int(there.get("GPU", 0) / resources.gpus))
    if fit == 0 and resources.address is None:
        raise UsageError(
            f"cpus, gpus: {resources.cpus} and {resources.gpus or 0:g} for a worker, but this "
            f"machine has {there.get('CPU', 0):g} and {there.get('GPU', 0):g}; ask for less"
        )
    # On a cluster that grows on demand there may be nothing yet.
    count = min(resources.workers or max(1, fit), runs)
    actor = ray.remote(kind).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        max_restarts=-1,
        max_task_retries=TRIES - 1,
    )
    workers: list[Any] = [actor.remote(*arguments, resources.cpus) for _ in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            ray.kill(worker)


def run_on_ray(scenario: "Scenario", resources: Resources) -> Iterator[tuple[str, dict[str, Any]]]:
    """The scenario's runs on Ray's workers, each record as it comes.

    A worker gets its next run when it is free; one that has no place yet gets none, so that no run
    waits for it. Raises UsageError where a worker's reference model is not this machine's.
    """
    from defuse.experiments.core.ray_worker import Worker

    if resources.gpus is None:
        on_gpu = resolve_device(scenario.model.device).type == "cuda"
        resources = replace(resources, gpus=float(on_gpu))
    with connected(resources):
        arguments = (scenario, str(Path.cwd()))
        with started_workers(Worker, resources, len(scenario.runs), *arguments) as workers:
            yield from run_all(workers, {run.name: run for run in scenario.runs})


def run_all(
    workers: Sequence[Any], runs: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every run's record by its name, as it comes."""
    import ray

    todo = iter(runs.items())
    busy: dict[Any, tuple[Any, str | None]] = {w.ready.remote(): (w, None) for w in workers}
    left = len(runs)
    while left:
        (call,), _ = ray.wait(list(busy))
        worker, name = busy.pop(call)
        if (following := next(todo, None)) is not None:
            busy[worker.run.remote(following[1])] = worker, following[0]
        if name is not None:
            yield name, _record(call)
            left -= 1


def _record(call: Any) -> dict[str, Any]:  # noqa: ANN401
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(call)
    except RayError as error:
        return {"error": _death(error)}


def _death(error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"the worker's process died {TRIES} times ({type(error).__name__}: {reason}); if memory "
        "ran out, take fewer --workers"
    )


def _connect(address: str, how: Mapping[str, Any]) -> None:
    import ray

    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon:  # where nobody listens, Ray itself would go on trying for minutes
            socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS).close()
        ray.init(address, **how)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"address: no Ray cluster answers at {address} ({reason})") from error
