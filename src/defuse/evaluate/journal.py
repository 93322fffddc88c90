"""Finished batches on disk, so that an evaluation that was killed goes on where it stopped.

Each process appends to a file of its own: a header that says what the scores belong to, then a
JSON line for every batch, on disk before the next batch begins.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from defuse.errors import UsageError
from defuse.evaluate.ledger import Ledger, Scores
from defuse.files import held
from defuse.jsonl import append_line, drop_torn_line, read_lines
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
            header = next(read_lines(path), {})
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
            for line in list(read_lines(path))[1:]:
                known.setdefault(line["of"], {}).update(dict(line["scores"]))
        processes.wait()  # nobody writes before all have read
        own = self.folder / f"{processes.rank}.jsonl"
        drop_torn_line(own)

        def keep(name: str, scores: Scores) -> None:
            append_line(own, identity, {"of": name, "scores": list(scores.items())})

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
