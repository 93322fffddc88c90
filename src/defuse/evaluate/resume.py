"""Finished batches on disk, so that an evaluation that was killed goes on where it stopped.

Each process appends to a file of its own: a header that says what the scores belong to, then a
JSON line for every batch, on disk before the next batch begins.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError
from defuse.utils.files import held
from defuse.utils.jsonl import append_line, drop_torn_line, read_lines

LOCK = "lock"
Scores = dict[int, list[float]]  # by group: the log-probability (nats) of each of its requests
Identity = Mapping[str, str]  # what scores depend on, by what a person would call it


class Ledger:
    """Scores of lists of groups, each list under a name that belongs to its content.

    `known`: what an earlier run left; its batches are not scored again. `keep` is given the name
    and the scores of every batch that this process finishes. Batches are dealt to `processes` in
    turn, on through all lists, so that lists of one batch each are shared out, too.
    """

    def __init__(
        self,
        known: Mapping[str, Scores] | None = None,
        keep: Callable[[str, Scores], None] = lambda _, __: None,
        processes: Processes = ALONE,
    ) -> None:
        self._known = known or {}
        self._found: dict[str, Scores] = {name: dict(known) for name, known in self._known.items()}
        self._own: list[tuple[str, Scores]] = []
        self._keep = keep
        self._processes = processes
        self._dealt = 0

    def undone(self, name: str, batches: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Those of the batches (of group numbers) that are not known as a whole."""
        known = self._known.get(name, {}).keys()
        return [batch for batch in batches if not known >= set(batch)]

    def turns(self, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], int]]:
        """This process's batches, and how many groups all processes will have finished with it."""
        count, finished = self._processes.count, list(accumulate(map(len, batches)))
        first = (self._processes.rank - self._dealt) % count
        self._dealt += len(batches)
        for number in range(first, len(batches), count):
            yield batches[number], finished[min(number + count, len(batches)) - 1]

    def add(self, name: str, scores: Scores) -> None:
        """Take in a batch that this process has finished."""
        self._keep(name, scores)
        self._own.append((name, scores))

    def exchange(self) -> None:
        """Give and take what each process has finished; all of them must call this."""
        for name, scores in chain.from_iterable(self._processes.gather(self._own)):
            self._found.setdefault(name, {}).update(scores)
        self._own = []

    def scores(self, name: str) -> list[list[float]]:
        """A whole list's scores, after `exchange`."""
        found = self._found[name]
        return [found[number] for number in range(len(found))]


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
