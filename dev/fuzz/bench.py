"""Runs of inputs, each in a fresh copy of a folder with valid files."""

import importlib
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NoReturn

from dev.forks import Ending, in_fork
from dev.fuzz.kinds import Input, Kind
from dev.fuzz.kinds_of_fields import options, recipes
from dev.fuzz.kinds_of_files import data, models, saved
from dev.fuzz.process import run
from dev.fuzz.verdict import read_files, verdict
from dev.fuzz.workplace import make_inputs
from dev.soak.instants import kill_at, record

DEEP = "a/b/work"  # "../.." leads from there to a place that is looked at


class Bench:
    """A place for valid files, and for the copy that an input runs in."""

    def __init__(self, place: Path) -> None:
        some = (recipes, options, data, models, saved)
        self.kinds = {kind.name: kind for make in some for kind in make()}
        self._place = place
        self._trial = place / "trial"
        self._valid = cache(self._make_valid)
        in_fork(lambda: make_inputs(place / "valid" / DEEP))

    def content(self, kind: Kind) -> Callable[[str], bytes]:
        """Reads the valid files of a kind."""
        folder = self._folder(kind)
        return lambda name: _only(folder, name).read_bytes()

    def run(self, given: Input) -> tuple[str, Ending]:
        """What is wrong with how an input ends (nothing, if it is right), and how it ends."""
        kind = self.kinds[given.kind]
        shutil.rmtree(self._trial, ignore_errors=True)
        shutil.copytree(self._folder(kind).parents[2], self._trial, symlinks=True)
        work = self._trial / DEEP
        if given.content is not None:
            _only(work, str(kind.file)).write_bytes(given.content)
        before = read_files(self._trial)
        ending = run(work, given.command, lambda: _stop(kind.check_only))
        writes = [f"{DEEP}/{pattern}" for pattern in kind.writes]
        new = ["*"] if kind.arguments is not None else writes
        after = read_files(self._trial)
        own = [*writes, *(name for name in after if name not in before and "*" in new)]
        return verdict(ending, before, after, own), ending

    def check_valid(self, kind: Kind) -> None:
        """Raise RuntimeError unless the kind's commands read the valid files."""
        for command in kind.commands:
            wrong, ending = self.run(Input(kind.name, command))
            if wrong or ending.code:
                raise RuntimeError(f"{kind.name}: the valid file ends so: {wrong} {ending.err}")

    def _folder(self, kind: Kind) -> Path:
        return self._valid(kind.made_by, kind.file if kind.made_by else None, kind.is_finished)

    def _make_valid(
        self, command: tuple[str, ...] | None, wanted: str | None, is_finished: bool
    ) -> Path:
        plain = self._place / "valid"
        if command is None or wanted is None:
            return plain / DEEP
        name = "".join(letter if letter.isalnum() else "-" for letter in wanted)
        copy = self._place / f"saved-{name}"
        trace = self._place / "trace"

        def end(before: Callable[[], object]) -> Ending:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(plain, copy)
            return run(copy / DEEP, command, before, bounded=False)

        ending = end(lambda: record(copy, trace))
        if is_finished and not ending.code:
            return copy / DEEP
        changes = len(trace.read_text(encoding="utf-8").splitlines())
        for number in range(changes, 0, -1):
            end(lambda number=number: kill_at(copy, number))
            output = wanted.partition(".partial")[0]  # its run is not finished
            if any((copy / DEEP).glob(wanted)) and not (copy / DEEP / output).exists():
                return copy / DEEP
        raise RuntimeError(f"{' '.join(command)} leaves no {wanted}: {ending.err[-1000:]}")


def _only(folder: Path, pattern: str) -> Path:
    """The first file of a pattern."""
    return sorted(folder.glob(pattern))[0]


def _stop(function: str) -> None:
    """Let `function` end the process at once with exit code 0."""
    if function:
        module, _, name = function.partition(":")
        setattr(importlib.import_module(module), name, _leave)


def _leave(*_: object, **__: object) -> NoReturn:
    raise SystemExit(0)
