"""Runs an experiment in this process, in several processes, or on Ray.

All three do the same: `execute` for every run, each record as soon as it is there.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from defuse.experiments.core.run import ExperimentContext, execute
from defuse.experiments.core.scenario import Run, Scenario
from defuse.models.load import resolve_device
from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError
from defuse.utils.progress import SILENT, Progress
from defuse.utils.ray_workers import connected, fitting, ray_workers
from defuse.utils.workers import Submit, available_cores, begin_worker, local_workers

RunnerName = Literal["serial", "processes", "ray"]
Record = dict[str, Any]


@dataclass(frozen=True)
class Runner:
    """How runs are carried out.

    `jobs`: runs at a time; None is one a core, and on Ray as many as fit. The rest is of Ray alone.
    `address`: of a cluster; None starts Ray on this machine, for the experiment alone. Each run has
    `cpus` threads and `gpus` GPUs; None is one GPU where the model's device is one on this machine.
    Raises UsageError for numbers that make no sense, and where Ray is missing.
    """

    name: RunnerName = "serial"
    jobs: int | None = None
    address: str | None = None
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        for field, least in (("jobs", 1), ("cpus", 1), ("gpus", 0)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise UsageError(f"{field}: is {value}; give {least} or more")
        if self.name == "ray" and find_spec("ray") is None:
            raise UsageError(f"runner: ray is not installed; {install_hint('ray')}")

    def at_a_time(self, runs: int) -> int:
        """How many of `runs` are carried out at a time on this machine."""
        if self.name == "serial":
            return 1
        return max(1, min(self.jobs or available_cores(), runs))


def run_all(
    context: ExperimentContext, runs: Sequence[Run], runner: Runner, progress: Progress = SILENT
) -> Iterator[tuple[Run, Record]]:
    """Carry out all runs; yields each with its record as it ends."""
    progress.start(f"{len(runs)} runs", sum(run.steps for run in runs))
    if runner.name == "serial":
        yield from ((run, execute(context, run, progress)) for run in runs)
        return
    with _processes(context.scenario, runner, len(runs)) as submit:
        waiting = {submit(_execute, run): run for run in runs}
        for future in as_completed(waiting):
            run = waiting[future]
            progress.advance(run.steps, run.name)
            yield run, _record(run, future)


def _record(run: Run, future: Future[Record]) -> Record:
    """What came of a run; an error if no process could carry it out."""
    try:
        return future.result()
    except UsageError as error:
        return {"run": run.name, "error": str(error)}
    except BrokenProcessPool as error:
        raise UsageError(
            "jobs: a process was killed, perhaps because memory ran out; take fewer --jobs, and "
            "run it again for what is not finished"
        ) from error


@contextmanager
def _processes(scenario: Scenario, runner: Runner, runs: int) -> Iterator[Submit]:
    """Submit calls to the runner's processes, which share the scenario."""
    threads = runner.cpus if runner.name == "ray" else 1
    begin = partial(_begin, scenario.with_runs(()), str(Path.cwd()), threads)
    if runner.name == "processes":
        with local_workers(runner.at_a_time(runs), begin) as submit:
            yield submit
        return
    gpus = runner.gpus
    if gpus is None:
        gpus = float(resolve_device(scenario.model.device).type == "cuda")
    cpus = None if runner.jobs is None else runner.jobs * runner.cpus
    with connected(runner.address, cpus):
        fit = fitting(runner.cpus, gpus, grows=runner.address is not None)
        with ray_workers(min(runner.jobs or fit, runs), begin, runner.cpus, gpus) as submit:
            yield submit


_context: ExperimentContext | None = None  # of a process that carries out runs


def _begin(scenario: Scenario, folder: str, threads: int) -> None:
    """Set up a process; paths mean in it what they mean in `folder`, where this one works."""
    global _context
    begin_worker(threads)
    try:
        os.chdir(folder)
    except OSError as error:
        raise UsageError(
            f"address: {socket.gethostname()} has no folder {folder}; start from a folder that all "
            "the cluster's machines share"
        ) from error
    _context = ExperimentContext(scenario)


def _execute(run: Run) -> Record:
    assert _context is not None  # noqa: S101 (_begin)
    return execute(_context, run)
