"""Runs side by side, one process a core: tiny tensors gain nothing from a second thread."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from defuse.experiments.core.runner import side_by_side
from defuse.experiments.synthetic.exam import Part
from defuse.experiments.synthetic.experiment import Bench, execute
from defuse.experiments.synthetic.grid import Run
from defuse.experiments.synthetic.models import load_pair
from defuse.experiments.synthetic.world import World


@dataclass(frozen=True)
class Place:
    """All that a process needs to set up the same bench."""

    world: World
    forget: str
    part: Part
    models: Path
    folder: Path

    def bench(self) -> Bench:
        base = load_pair(self.models).base
        return Bench(base, self.world, self.forget, self.part, self.folder)


_bench: Bench | None = None


def available_cores() -> int:
    """The processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(runs: Sequence[Run], place: Place, jobs: int) -> Iterator[Run]:
    """Execute all runs, `jobs` at a time; each as it is finished."""
    yield from side_by_side(runs, _execute, jobs, _set_up, place)


def _set_up(place: Place) -> None:
    global _bench
    torch.set_num_threads(1)
    _bench = place.bench()


def _execute(run: Run) -> None:
    assert _bench is not None  # noqa: S101 (_set_up)
    execute(run, _bench)
