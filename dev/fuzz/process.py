"""Commands in forks whose time, memory and places are bounded."""

import os
import resource
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets.config

from dev import forks

SECONDS = 10  # of processor time
BYTES = 2**30  # above what the process has by its imports
PATIENCE = 100.0  # seconds, for one that waits and computes nothing


def run(
    folder: Path,
    arguments: Sequence[str],
    before: Callable[[], object] = lambda: None,
    *,
    bounded: bool = True,
) -> forks.Ending:
    """Run `defuse` with `arguments` in `folder`, after `before`; its home is there, too."""

    def prepare() -> None:
        tempfile.tempdir = str(folder)
        os.environ["HOME"] = str(folder)
        datasets.config.HF_DATASETS_CACHE = folder / ".cache"
        before()
        if bounded:
            _bound()

    return forks.wait(forks.start(folder, arguments, prepare), PATIENCE)


def _bound() -> None:
    """Bound this process's time and memory; the system ends it, or refuses memory."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + SECONDS, int(used) + SECONDS + 1))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
