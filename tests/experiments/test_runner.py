"""Tasks in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from defuse.experiments.core.runner import side_by_side

PARENT = """
import sys
from defuse.experiments.core.runner import side_by_side
from tests.experiments.test_runner import linger
if __name__ == "__main__":
    list(side_by_side([sys.argv[1] + "/one", sys.argv[1] + "/two"], linger, 2, bool))
"""


def linger(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def double(path: Path) -> None:
    path.write_text(os.environ["SIDE"] + str(os.getpid()))


def remember(value: str) -> None:
    os.environ["SIDE"] = value


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


def test_each_process_is_set_up_and_every_task_done(tmp_path: Path) -> None:
    tasks = [tmp_path / str(number) for number in range(3)]
    assert set(side_by_side(tasks, double, 2, remember, "x")) == set(tasks)
    found = {task.read_text() for task in tasks}
    assert all(each.startswith("x") for each in found)
    assert f"x{os.getpid()}" not in found


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
