"""Finished batches on disk, so that an evaluation that was killed goes on where it stopped.

Each process appends to a file of its own: a header that says what the scores belong to, then a
JSON line for every batch, on disk before the next batch begins.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defuse.errors import UsageError
from defuse.evaluate.ledger import Ledger, Scores
from defuse.files import held
from defuse.processes import ALONE, Processes

LOCK = "lock"
Identity = Mapping[str, str]  # what scores depend on, by what a person would call it


@dataclass(frozen=True)
class Journal:
    """One model's scores in a folder of its own."""

    folder: Path

    def check(self, expected: Identity) -> None:
        """Raise UsageError if scores are kept here that belong to something else."""
        for path in self._files():
            header = next(_lines(path), {})
            other = [what for what, value in expected.items() if header.get(what, value) != value]
            if other:
                raise UsageError(
                    f"out: {self.folder} keeps unfinished work for other {' and '.join(other)}; "
                    "finish it with the options it was begun with, delete it, or name another --out"
                )

    def open(self, identity: Identity, processes: Processes = ALONE) -> Ledger:
        """A ledger that knows the scores kept so far and keeps what comes; all processes call this.

        Raises UsageError if they belong to another `identity`.
        """
        self.check(identity)
        known: dict[str, Scores] = {}
        for path in self._files():
            for line in list(_lines(path))[1:]:
                known.setdefault(line["of"], {}).update(dict(line["scores"]))
        processes.wait()  # nobody writes before all have read
        own = self.folder / f"{processes.rank}.jsonl"
        _drop_torn_line(own)

        def keep(name: str, scores: Scores) -> None:
            _append(own, identity, {"of": name, "scores": list(scores.items())})

        return Ledger(known, keep, processes)

    def remove(self) -> None:
        """Delete the files, once the scores are in a result file."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))


@contextmanager
def held_together(
    folder: Path, what: str, check: Callable[[], None], processes: Processes
) -> Iterator[None]:
    """The first process holds `folder` for all of them, and then does `check`.

    At the end the folder goes if nothing is kept in it. Raises UsageError in all processes for what
    the first is refused.
    """
    with ExitStack() as stack:
        refusal = ""
        if processes.is_first:
            try:
                stack.enter_context(held(folder / LOCK, "out", what))
                stack.callback(_remove_if_empty, folder)
                check()
            except UsageError as error:
                refusal = str(error)
        refusal = processes.gather(refusal)[0]
        if refusal:
            raise UsageError(refusal)
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            shutil.rmtree(folder)


def _append(path: Path, identity: Identity, line: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        lines = [line] if file.tell() else [identity, line]
        file.write("".join(f"{json.dumps(each)}\n" for each in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    *whole, _ = path.read_bytes().split(b"\n")  # a kill may have torn the last line
    for number, line in enumerate(whole, start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number}: is not valid JSON; delete the file"
            ) from error


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        whole, newline, _ = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole + newline))
