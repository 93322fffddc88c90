"""Commands in bounded forks of a process that has imported everything."""

import gc
import importlib
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import datasets.config
import torch
from transformers.utils.logging import disable_progress_bar

import defuse
from defuse.cli import main

SECONDS = 10  # of processor time
BYTES = 2**30  # above what the process has by its imports
PATIENCE = 100.0  # seconds, for one that waits and computes nothing
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
    """How a command ended: its exit code (of a signal, −number) and what it printed."""

    code: int
    out: str
    err: str


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


def run(
    folder: Path,
    arguments: Sequence[str],
    before: Callable[[], object] = lambda: None,
    *,
    bounded: bool = True,
) -> Ending:
    """Run `defuse` with `arguments` in `folder`, after `before`; both streams are pipes."""
    pipes = [os.pipe(), os.pipe()]
    process = os.fork()
    if not process:
        code = 99
        try:
            code = _run(folder, arguments, [writer for _, writer in pipes], before, bounded)
        finally:
            os._exit(code)
    for reader, writer in pipes:
        os.close(writer)
        os.set_blocking(reader, False)
    return _wait(process, [reader for reader, _ in pipes])


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


def _wait(process: int, readers: Sequence[int]) -> Ending:
    end, printed = time.monotonic() + PATIENCE, [b"", b""]
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        for place, reader in enumerate(readers):
            with suppress(BlockingIOError):
                while part := os.read(reader, 2**16):
                    printed[place] = (printed[place] + part)[:LONGEST]
        if found:
            for reader in readers:
                os.close(reader)
            texts = [part.decode(errors="backslashreplace") for part in printed]
            return Ending(os.waitstatus_to_exitcode(status), *texts)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.003)


def _run(
    folder: Path,
    arguments: Sequence[str],
    writers: Sequence[int],
    before: Callable[[], object],
    bounded: bool,
) -> int:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, writer in enumerate(writers, start=1):
        os.dup2(writer, number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    os.environ["HOME"] = str(folder)
    datasets.config.HF_DATASETS_CACHE = folder / ".cache"
    sys.argv = ["defuse", *arguments]
    try:
        before()
        if bounded:
            _bound()
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


def _bound() -> None:
    """Bound this process's time and memory; the system ends it, or refuses memory."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + SECONDS, int(used) + SECONDS + 1))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
