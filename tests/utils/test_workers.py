"""Worker processes end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from defuse.utils.workers import begin_worker
from tests.utils.test_workers import linger
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
