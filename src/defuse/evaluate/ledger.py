"""Which batches are scored: before, by this process, or by the others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, chain

from defuse.processes import ALONE, Processes

Scores = dict[int, list[float]]  # by group: the log-probability (nats) of each of its requests


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
