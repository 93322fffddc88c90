"""Findings that JSON cannot hold, beside those that are noted."""

from collections.abc import Callable
from typing import TypeVar

from defuse.attacks.notes import Notes

T = TypeVar("T")
K = TypeVar("K")


def once_beside(
    notes: Notes, name: str, find: Callable[[], tuple[T, K]]
) -> tuple[T, Callable[[], K]]:
    """The first thing that `find` gives, noted as `name`, and a way to the second.

    The second stays in memory. After a resumption it is found again, once it is asked for.
    """
    found: list[K] = []

    def first() -> T:
        value, rest = find()
        found.append(rest)
        return value

    def second() -> K:
        if not found:
            found.append(find()[1])
        return found[0]

    return notes.once(name, first), second
