"""Progress of long work: what library code reports, and how it is shown."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Protocol, TextIO

from defuse.utils.text import printable

EVERY_SECONDS = 30.0


class Progress(Protocol):
    """Receives where long work is. A stage ends when the next one starts."""

    def start(self, name: str, total: int) -> None:
        """Start a stage of `total` pieces of work."""
        ...

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report that `count` more pieces are done; `note`: what to show beside, such as losses."""
        ...


class Silent:
    """Shows nothing."""

    def start(self, name: str, total: int) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None: ...


SILENT = Silent()


@dataclass(frozen=True)
class Labelled:
    """Shows each stage's name after a label, such as the name of a run."""

    progress: Progress
    label: str

    def start(self, name: str, total: int) -> None:
        self.progress.start(f"{self.label}: {name}", total)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.progress.advance(count, note)


def duration(seconds: float) -> str:
    """A duration as one would say it: "about 40 s", "about 12 min", "about 2.5 h"."""
    if seconds < 90:
        return f"about {max(0, round(seconds / 10)) * 10} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {minutes / 60:.1f} h"


class PlainProgress:
    """Plain lines for a log file: one when a stage starts, then one every `EVERY_SECONDS`.

    A thread writes them, so that a line also appears while a single piece of work takes long. End
    it with `close`.
    """

    def __init__(self, stream: TextIO | None = None, every: float | None = None) -> None:
        self._stream = stream or sys.stderr
        self._name, self._note = "", ""
        self._done, self._total, self._started = 0, 0, time.monotonic()
        self._closed = Event()
        self._thread = Thread(
            target=self._write_regularly, args=(every or EVERY_SECONDS,), daemon=True
        )
        self._thread.start()

    def start(self, name: str, total: int) -> None:
        self._name, self._note = name, ""
        self._done, self._total, self._started = 0, total, time.monotonic()
        self._write()

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        self._note = note

    def close(self) -> None:
        """Stop writing; the last line says how far the last stage came."""
        self._closed.set()
        self._thread.join()
        if self._name:
            self._write()

    def _write_regularly(self, every: float) -> None:
        while not self._closed.wait(every):
            if self._name:
                self._write()

    def _write(self) -> None:
        line = f"{self._name}: {self._done} of {self._total}"
        if 0 < self._done < self._total:
            elapsed = time.monotonic() - self._started
            line += f", {duration(elapsed / self._done * (self._total - self._done))} left"
        if self._note:
            line += f", {self._note}"
        print(printable(line), file=self._stream, flush=True)


class _Bar:
    """A bar on a terminal for each stage."""

    def __init__(self, bars: object) -> None:
        from rich.progress import Progress as Bars

        assert isinstance(bars, Bars)  # noqa: S101
        self._bars, self._task = bars, None

    def start(self, name: str, total: int) -> None:
        self._task = self._bars.add_task(name, total=total, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        if self._task is not None:
            self._bars.update(self._task, advance=count, note=note)


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[Progress]:
    """Show progress on standard error: bars on a terminal, else plain lines; nothing if `quiet`."""
    if quiet:
        yield SILENT
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield bars
    else:
        plain = PlainProgress()
        try:
            yield plain
        finally:
            plain.close()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    from defuse.utils.screen import Console

    class Name(ProgressColumn):
        """The stage's name as it is: names of runs may hold brackets."""

        def render(self, task: Task) -> Text:
            return Text(task.description)

    columns = (
        Name(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _Bar(bars)
