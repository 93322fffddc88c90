"""A progress that remembers what it was told."""

from dataclasses import dataclass, field


@dataclass
class Counted:
    """`counts`: every advance; `stages`: the name and total of every stage."""

    counts: list[int] = field(default_factory=list)
    stages: list[tuple[str, int]] = field(default_factory=list)

    def start(self, name: str, total: int) -> None:
        self.stages.append((name, total))

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002
        self.counts.append(count)
