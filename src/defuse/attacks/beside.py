"""What goes with noted findings and is not noted itself: made again only if it is needed."""

from collections.abc import Callable
from typing import TypeVar

from defuse.attacks.notes import Notes

T = TypeVar("T")
K = TypeVar("K")


def once_with(notes: Notes, name: str, make: Callable[[], K], find: Callable[[K], T]) -> T:
    """What `find` sees in what `make` gives, noted as `name`.

    Nothing is made where that is noted. What making costs is not noted, so that making again after
    a stop is not counted a second time.
    """
    made = [] if notes.knows(name) else [make()]
    return notes.once(name, lambda: find(*made))


def once_beside(
    notes: Notes, name: str, find: Callable[[], tuple[T, K]]
) -> tuple[T, Callable[[], K]]:
    """The first thing that `find` gives, noted as `name`, and a way to the second.

    The second stays in memory. After a resumption it is found again, once it is asked for: outside
    of other findings, or these would be noted with its cost.
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
