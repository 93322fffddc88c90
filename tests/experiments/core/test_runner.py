"""Worker processes of an experiment, and what they hand back."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NoReturn

import pytest

from defuse.experiments.core import runner
from defuse.experiments.core.run import recorded
from defuse.utils.errors import UsageError
from tests.helpers.answered import run

PARENT = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from defuse.experiments.core.runner import begin_worker
from tests.experiments.core.test_runner import linger
if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn"), begin_worker) as pool:
        list(pool.map(linger, [sys.argv[1] + "/one", sys.argv[1] + "/two"]))
"""


def linger(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait(until: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_takes_its_processes_along(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join(sys.path)
    parent = subprocess.Popen(  # noqa: S603
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    notes = [tmp_path / "one", tmp_path / "two"]
    wait(lambda: all(note.exists() and note.read_text() for note in notes))
    processes = [int(note.read_text()) for note in notes]
    assert all(map(is_alive, processes))
    parent.send_signal(how)
    parent.wait()
    wait(lambda: not any(map(is_alive, processes)))


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
    with pytest.raises(UsageError, match="jobs: is 0; give 1 or more"):
        runner.Runner(jobs=0)
    with pytest.raises(UsageError, match="cpus: is 0; give 1 or more"):
        runner.Runner(cpus=0)
    with pytest.raises(UsageError, match="gpus: is -1; give 0 or more"):
        runner.Runner(gpus=-1)
