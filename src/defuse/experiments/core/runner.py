"""Runs an experiment in this process, in several processes, or on Ray.

All three do the same: `execute` for every run, each record as soon as it is there.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, Literal

import torch

from defuse.experiments.core.ray_cluster import Resources, check_resources, run_on_ray
from defuse.experiments.core.run import ExperimentContext, execute
from defuse.experiments.core.scenario import Run, Scenario
from defuse.utils.errors import require
from defuse.utils.progress import SILENT, Progress

RunnerName = Literal["serial", "processes", "ray"]
Record = dict[str, Any]


@dataclass(frozen=True)
class Runner:
    """How runs are carried out.

    `jobs`: runs at a time with "processes", one thread each; None is one a core. `resources`: of
    Ray. Raises UsageError for numbers that make no sense, and where Ray is missing.
    """

    name: RunnerName = "serial"
    jobs: int | None = None
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if self.jobs is not None:
            require(self.jobs > 0, "jobs", self.jobs, "processes; give 1 or more")
        if self.name == "ray":
            check_resources(self.resources)

    def at_a_time(self, runs: int) -> int:
        """How many of `runs` are carried out at a time on this machine."""
        if self.name == "serial":
            return 1
        wanted = self.resources.workers if self.name == "ray" else self.jobs
        return max(1, min(wanted or available_cores(), runs))


def available_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    context: ExperimentContext, runs: Sequence[Run], runner: Runner, progress: Progress = SILENT
) -> Iterator[tuple[Run, Record]]:
    """Carry out all runs; yields each with its record as it ends."""
    progress.start(f"{len(runs)} runs", sum(run.steps for run in runs))
    if runner.name == "serial":
        yield from ((run, execute(context, run, progress)) for run in runs)
        return
    scenario = context.scenario.with_runs(runs)
    if runner.name == "processes":
        found = in_processes(scenario, runner.at_a_time(len(runs)))
    else:
        found = run_on_ray(scenario, runner.resources)
    named = {run.name: run for run in runs}
    for name, record in found:
        progress.advance(named[name].steps, name)
        yield named[name], record


def in_processes(scenario: Scenario, jobs: int) -> Iterator[tuple[str, Record]]:
    """The scenario's runs in `jobs` processes with one thread each."""
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (scenario,))
    try:
        waiting = {pool.submit(_execute, run): run for run in scenario.runs}
        for future in as_completed(waiting):
            yield waiting[future].name, future.result()
    finally:
        # After an error or Ctrl-C, what has not started never does.
        pool.shutdown(cancel_futures=True)


_context: ExperimentContext | None = None  # of a worker process


def begin_worker() -> None:
    """Set up a worker process: one thread, and an end when its parent is killed."""
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _begin(scenario: Scenario) -> None:
    global _context
    begin_worker()
    _context = ExperimentContext(scenario)


def _execute(run: Run) -> Record:
    assert _context is not None  # noqa: S101 (_begin)
    return execute(_context, run)


def _end_with_parent() -> None:
    """End this process when its parent is killed, or it would keep what it has locked."""
    parent = parent_process()
    assert parent is not None  # noqa: S101
    parent.join()
    os._exit(1)
