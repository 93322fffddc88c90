"""Carries out an experiment's runs: `execute` for each, and each record as soon as it is there."""

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from defuse.experiments.core.run import ExperimentContext, execute
from defuse.experiments.core.scenario import Run, Scenario
from defuse.models.load import resolve_device
from defuse.utils.errors import UsageError
from defuse.utils.progress import SILENT, Progress
from defuse.utils.runner import Runner
from defuse.utils.workers import begin_worker

Record = dict[str, Any]


def run_all(
    context: ExperimentContext, runs: Sequence[Run], runner: Runner, progress: Progress = SILENT
) -> Iterator[tuple[Run, Record]]:
    """Carry out all runs; yields each with its record as it ends.

    On Ray each has one GPU if the model's device is one on this machine, unless `runner` says more.
    """
    progress.start(f"{len(runs)} runs", sum(run.steps for run in runs))
    if runner.name == "serial":
        yield from ((run, execute(context, run, progress)) for run in runs)
        return
    scenario = context.scenario
    if runner.name == "ray" and runner.gpus is None:
        has_gpu = resolve_device(scenario.model.device).type == "cuda"
        runner = replace(runner, gpus=float(has_gpu))
    begin = partial(_begin, scenario.with_runs(()), str(Path.cwd()))
    with runner.workers(len(runs), begin) as submit:
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
