"""Worker processes of an experiment, and what they hand back."""

import errno
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NoReturn

import pytest

from defuse.experiments.core import runner
from defuse.experiments.core.run import recorded
from defuse.utils.errors import UsageError
from defuse.utils.runner import Runner
from tests.helpers.answered import run


def result_of(error: Exception) -> dict[str, Any]:
    future: Future[dict[str, Any]] = Future()
    future.set_exception(error)
    return runner._record(run(), future)


def test_a_run_that_no_process_could_carry_out_is_recorded():
    error = UsageError("address: host has no folder x; start from a shared one")
    assert result_of(error) == {"run": run().name, "error": str(error)}


def test_a_full_disk_stops_the_experiment_and_is_no_run_s_failure() -> None:
    def fail(error: Exception) -> Callable[[], NoReturn]:
        def work() -> NoReturn:
            raise error

        return work

    full = OSError(errno.ENOSPC, "No space left on device", "answers")
    with pytest.raises(OSError, match="No space left"):
        recorded("run", fail(full))
    assert "No such file" in recorded("run", fail(OSError(errno.ENOENT, "No such file")))["error"]


def test_a_process_that_was_killed_is_said_in_a_sentence():
    with pytest.raises(UsageError, match="jobs: a process was killed"):
        result_of(BrokenProcessPool())


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="jobs: 0 is refused"):
        Runner(jobs=0)
    with pytest.raises(UsageError, match="cpus: 0 is refused"):
        Runner(cpus=0)
    with pytest.raises(UsageError, match="gpus: -1 is refused"):
        Runner(gpus=-1)
