"""Scores of finished batches, shared among processes and kept on disk for an interrupted run.

Each process appends to a log of its own (`defuse.store.ResultLog`), one result for every batch. A
batch is on disk before the next one is computed.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate, chain
from pathlib import Path

from defuse.store import Identity, ResultLog, check_log
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError
from defuse.utils.files import held

LOCK = "lock"
Scores = dict[int, list[float]]  # by group: the log-probability (nats) of each of its pairs


class BatchScores:
    """Scores of lists of groups; the name of a list depends on its content alone.

    `known` holds the scores of an earlier run, by list: their batches are not computed again.
    `keep` receives the list's name and the scores of every batch that this process finishes.
    Batches are dealt to `processes` in turn, and the turn passes on from list to list, so that
    lists of one batch each are shared, too.
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

    def missing(self, name: str, batches: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The batches (of group numbers) that are not known in full."""
        known = self._known.get(name, {}).keys()
        return [batch for batch in batches if not known >= set(batch)]

    def share(self, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], int]]:
        """This process's batches, each with the number of groups that all have finished by then."""
        count, finished = self._processes.count, list(accumulate(map(len, batches)))
        first = (self._processes.rank - self._dealt) % count
        self._dealt += len(batches)
        for number in range(first, len(batches), count):
            yield batches[number], finished[min(number + count, len(batches)) - 1]

    def add(self, name: str, scores: Scores) -> None:
        """Keep a batch that this process has finished."""
        self._keep(name, scores)
        self._own.append((name, scores))

    def exchange(self) -> None:
        """Send every process what the others have finished; all processes must call this."""
        for name, scores in chain.from_iterable(self._processes.gather(self._own)):
            self._found.setdefault(name, {}).update(scores)
        self._own = []

    def of(self, name: str) -> list[list[float]]:
        """All scores of a list, after `exchange`."""
        found = self._found[name]
        return [found[number] for number in range(len(found))]


def open_scores(folder: Path, identity: Identity, processes: Processes = ALONE) -> BatchScores:
    """The scores that logs in `folder` hold, and a log for those to come; all processes call this.

    Raises UsageError if the logs belong to another identity or are damaged.
    """
    check_scores(folder, identity)
    logs = [ResultLog(path, identity) for path in _logs(folder)]
    known: dict[str, Scores] = {}
    for log in logs:
        for batch in log.names():
            known.setdefault(batch.rpartition("/")[0], {}).update(dict(log.get(batch) or ()))
    processes.wait()  # nobody writes before all have read
    own = ResultLog(folder / f"{processes.rank}.jsonl", identity)

    def keep(name: str, scores: Scores) -> None:
        own.put(f"{name}/{min(scores)}", list(scores.items()))

    return BatchScores(known, keep, processes)


def check_scores(folder: Path, identity: Identity) -> None:
    """Raise UsageError if `folder` holds scores of another identity, or of another part of one."""
    for path in _logs(folder):
        check_log(path, identity)


def _logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


@contextmanager
def held_together(
    folder: Path, what: str, check: Callable[[], None], processes: Processes
) -> Iterator[None]:
    """Hold `folder` for all processes; the first process holds it and calls `check`.

    At the end the folder is removed if nothing is kept in it. If the first process is refused, all
    raise its UsageError.
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
