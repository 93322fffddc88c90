"""The instants at which a command changes a folder, and what can happen to it there.

Python announces every opened, renamed and removed file to an audit hook before it acts. What the
tensor files' library does by itself is not announced; kills at random times fall into that.
"""

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
RENAME, OPEN = "os.rename", "open"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OnChange = Callable[[int, str], None]  # the change's number, and the event's name


def record(folder: Path, trace: Path) -> None:
    """Write the name of every change within `folder` to `trace`, a line each."""
    file = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    _listen(folder, lambda _, event: _write(file, event))


def kill_at(folder: Path, number: int) -> None:
    """Kill this process in the instant before the change with this number."""

    def kill(now: int, _: str) -> None:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _listen(folder, kill)


def fill_disk_at(folder: Path, number: int) -> None:
    """Let nothing new be made within `folder` from the change with this number on."""

    def refuse(now: int, event: str) -> None:
        if now >= number and event in (OPEN, "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _listen(folder, refuse)


def kill_after(cpu_seconds: float) -> None:
    """Let the system end this process after so much processor time; Python does not see it."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, max(cpu_seconds, 1e-3))


def limit_files(size: int) -> None:
    """Let no file of this process grow above `size` bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _listen(folder: Path, on_change: OnChange) -> None:
    count = 0
    root = f"{folder}{os.sep}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == OPEN and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        if event != OPEN and event not in CHANGES:
            return
        if isinstance(arguments[0], (str, bytes, os.PathLike)) and os.path.abspath(  # noqa: PTH100 (in a hook, no more than is needed)
            os.fsdecode(arguments[0])
        ).startswith(root):
            count += 1
            on_change(count, event)

    sys.addaudithook(hook)


def _write(file: int, event: str) -> None:
    os.write(file, f"{event}\n".encode())
