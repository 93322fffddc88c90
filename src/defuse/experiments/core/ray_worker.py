"""A process of Ray: one experiment context, in which run after run is carried out."""

import os
import socket
from functools import cached_property
from typing import Any

import torch

from defuse.experiments.core.run import ExperimentContext, execute
from defuse.experiments.core.scenario import Run, Scenario
from defuse.utils.errors import UsageError


class Worker:
    """Carries out runs. Nothing heavy happens before the first, so that a failure can be recorded.

    `folder`: where the experiment was started; paths mean here what they mean there.
    """

    def __init__(self, scenario: Scenario, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._scenario, self._folder = scenario, folder

    @cached_property
    def _context(self) -> ExperimentContext:
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise UsageError(
                f"address: {socket.gethostname()} has no folder {self._folder}; start from a "
                "folder that all the cluster's machines share"
            ) from error
        return ExperimentContext(self._scenario)

    def ready(self) -> None:
        """Return as soon as the process has a place to run in."""

    def run(self, run: Run) -> dict[str, Any]:
        """The record of a run, failed or not."""
        try:
            return {**execute(self._context, run), "host": socket.gethostname()}
        except UsageError as error:
            return {"run": run.name, "error": str(error), "host": socket.gethostname()}
