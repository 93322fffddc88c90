"""Commands in forks of a process that has imported everything, so that one takes a second."""

import gc
import importlib
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

import defuse
from defuse.cli import main

PREFIX = "defuse: "  # of a refusal's sentence
LONGEST = 2**20  # bytes of output that are kept
OTHERS = (
    "gguf",
    "peft",
    "pyarrow.dataset",
    "peft.tuners.lora.model",
    "transformers.models.llama.modeling_llama",
    "transformers.modeling_gguf_pytorch_utils",
    "datasets.packaged_modules.csv.csv",
)


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code (of a signal, −number), what it printed, its CPU time."""

    code: int
    out: str
    err: str
    cpu_seconds: float = 0.0

    @property
    def printed(self) -> str:
        """What it printed on both streams."""
        return self.out + self.err

    @property
    def is_crash(self) -> bool:
        return "Traceback (most recent call last)" in self.printed or "crash" in self.printed

    @property
    def is_refusal(self) -> bool:
        """Whether it ended in a sentence with exit code 2, and without a traceback."""
        return self.code == 2 and PREFIX in self.printed and not self.is_crash

    @property
    def last_line(self) -> str:
        """The sentence of a refusal, or whatever came last."""
        lines = (self.err or self.out).strip().splitlines() or ["nothing is said"]
        sentences = [line for line in lines if line.startswith(PREFIX)]
        return (sentences or lines)[-1][:300]


@dataclass(frozen=True)
class Running:
    """A command that was started; pipes take what it prints, as a limit on files would not."""

    process: int
    pipes: tuple[int, int]


def import_everything() -> None:
    """Import all that a command may import, and start no thread: a fork has only one."""
    torch.set_num_threads(1)
    disable_progress_bar()
    modules = pkgutil.walk_packages(defuse.__path__, "defuse.")
    names = [each.name for each in modules if "__main__" not in each.name]
    for name in (*names, *OTHERS):
        with suppress(ImportError):  # lm-eval's tasks, and packages that are not installed
            importlib.import_module(name)
    gc.freeze()


def start(
    folder: Path, command: Sequence[str], before: Callable[[], object] | None = None
) -> Running:
    """Start `defuse` with `command` in `folder`, after `before` in the same process."""
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    process = os.fork()
    if not process:
        code = 99
        try:
            code = _run(folder, command, (out_end, err_end), before)
        finally:
            os._exit(code)
    for reader, writer in ((out, out_end), (err, err_end)):
        os.close(writer)
        os.set_blocking(reader, False)
    return Running(process, (out, err))


def wait(running: Running, patience: float) -> Ending:
    """Wait for a command, and kill it if it takes more than `patience` seconds."""
    end, printed = time.monotonic() + patience, [b"", b""]
    while True:
        found, status, usage = os.wait4(running.process, os.WNOHANG)
        for place, reader in enumerate(running.pipes):
            with suppress(BlockingIOError):
                while part := os.read(reader, 2**16):
                    printed[place] = (printed[place] + part)[:LONGEST]
        if found:
            for reader in running.pipes:
                os.close(reader)
            out, err = (part.decode(errors="backslashreplace") for part in printed)
            cpu_seconds = usage.ru_utime + usage.ru_stime
            return Ending(os.waitstatus_to_exitcode(status), out, err, cpu_seconds)
        if time.monotonic() > end:
            os.kill(running.process, signal.SIGKILL)
        time.sleep(0.003)


def in_fork(work: Callable[[], object]) -> None:
    """Call `work` in a fork, so that this process starts no thread. Raises RuntimeError."""
    process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise RuntimeError("the valid files cannot be made")


def _run(
    folder: Path,
    command: Sequence[str],
    writers: Sequence[int],
    before: Callable[[], object] | None,
) -> int:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, writer in enumerate(writers, start=1):
        os.dup2(writer, number)
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
        with suppress(ValueError, OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    return 0
