"""Commands in forks of a process that has imported everything, so that one takes a second."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from defuse.cli import main
from dev.soak.workplace import Command

MODULES = (
    "transformers.models.llama.modeling_llama",
    "defuse.attacks.run",
    "defuse.evaluate.run",
    "defuse.experiments.reproduce.run",
    "defuse.experiments.core.experiment_scenario",
    "defuse.experiments.sweep",
    "defuse.experiments.theory.run",
    "defuse.finetune.run",
    "defuse.unlearning.run",
)
LIMIT = 180.0  # seconds, after which a command counts as hanging


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code (of a signal, −number), what it printed, its CPU time."""

    code: int
    printed: str
    cpu_seconds: float

    @property
    def is_refusal(self) -> bool:
        """Whether it ended in a sentence with exit code 2, and without a traceback."""
        return self.code == 2 and "defuse: " in self.printed and not self.is_crash

    @property
    def is_crash(self) -> bool:
        return "Traceback (most recent call last)" in self.printed or "crash" in self.printed

    @property
    def last_line(self) -> str:
        """The sentence of a refusal, or whatever came last."""
        lines = self.printed.strip().splitlines() or [""]
        return next((line for line in lines if line.startswith("defuse: ")), lines[-1])[:300]


def import_everything() -> None:
    """Import what the commands would import, and start no thread: a fork has only one."""
    torch.set_num_threads(1)
    disable_progress_bar()
    for name in MODULES:
        import_module(name)


@dataclass(frozen=True)
class Running:
    """A command that was started; a pipe takes what it prints, as a limit on files would not."""

    process: int
    pipe: int


def start(folder: Path, command: Command, before: Callable[[], object] | None = None) -> Running:
    """Start a command in `folder` after `before` in the same process."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    process = os.fork()
    if process:
        os.close(writer)
        return Running(process, reader)
    code = 99
    try:
        code = _run(folder, command, writer, before)
    finally:
        os._exit(code)


def wait(running: Running) -> Ending:
    """Wait for a command, and kill it if it hangs."""
    end = time.monotonic() + LIMIT
    printed = b""
    while True:
        found, status, usage = os.wait4(running.process, os.WNOHANG)
        with suppress(BlockingIOError):
            while part := os.read(running.pipe, 2**16):
                printed += part
        if found:
            os.close(running.pipe)
            code = os.waitstatus_to_exitcode(status)
            return Ending(code, printed.decode(errors="replace"), usage.ru_utime + usage.ru_stime)
        if time.monotonic() > end:
            os.kill(running.process, signal.SIGKILL)
        time.sleep(0.005)


def run(folder: Path, command: Command, before: Callable[[], object] | None = None) -> Ending:
    """Run a command to its end."""
    return wait(start(folder, command, before))


def _run(folder: Path, command: Command, writer: int, before: Callable[[], object] | None) -> int:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    os.chdir(folder)
    sys.argv = ["defuse", *command]
    try:
        if before is not None:
            before()
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
