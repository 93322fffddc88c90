"""Which runs an order wants: the short grid, all of them, or those that settings are tuned with."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from defuse.methods import METHODS
from defuse.utils.errors import UsageError


class _Run(Protocol):
    @property
    def method(self) -> str: ...


R = TypeVar("R", bound=_Run)
Grid = Callable[[], list[R]]


def choose_runs(
    short: Grid[R], full: Grid[R] | None, tuning: Grid[R] | None, only: Sequence[str]
) -> list[R]:
    """The runs of the wanted grid (`full` or `tuning` where asked for) with the methods `only`.

    Raises UsageError for two grids at once, a method that is none, and one that has no run.
    """
    if unknown := set(only) - set(METHODS):
        raise UsageError(f"only: {unknown.pop()!r} names no method; use {', '.join(METHODS)}")
    if full and tuning:
        raise UsageError("tune: does not go with full; run one after the other")
    chosen = [run for run in (full or tuning or short)() if not only or run.method in only]
    if not chosen:
        raise UsageError(f"only: {', '.join(only)} has no run here; add --full")
    return chosen
