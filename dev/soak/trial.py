"""One trial: a command is disturbed, run again to its end, and compared with an undisturbed run."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from dev.forks import Ending, start, wait
from dev.soak import instants
from dev.soak.outcome import Files, Undisturbed, clear, read_files
from dev.soak.workplace import Command

Disturb = Callable[["Subject", Random], str]  # what was wrong, or nothing
LIMIT = 180.0  # seconds, after which a command counts as hanging
KILLED = (-signal.SIGKILL, -signal.SIGPROF)


class NotDisturbedError(Exception):
    """The command ended before anything could happen to it."""


@dataclass(frozen=True)
class Subject:
    """A command with its undisturbed run: its files, its changes of the folder, its CPU time."""

    command: Command
    folder: Path
    inputs: Files
    undisturbed: Undisturbed
    changes: tuple[str, ...]
    cpu_seconds: float
    largest: int  # bytes of its largest file

    def run(self, before: Callable[[], object] | None = None) -> Ending:
        """Run the command to its end, after `before` in the same process."""
        return wait(start(self.folder, self.command, before), LIMIT)


def observe(command: Command, folder: Path, inputs: Files) -> Subject:
    """Run a command twice, undisturbed. Raises RuntimeError if it fails."""
    trace = folder.with_suffix(".trace")
    found: list[dict[str, str]] = []
    largest, cpu_seconds = 0, 0.0
    for _ in range(2):
        clear(folder, inputs)
        ending = wait(start(folder, command, lambda: instants.record(folder, trace)), LIMIT)
        if ending.code:
            raise RuntimeError(f"{' '.join(command)} fails by itself: {ending.printed[-2000:]}")
        found.append(read_files(folder, inputs))
        largest = max((folder / name).stat().st_size for name in found[0])
        cpu_seconds = ending.cpu_seconds
    one, other = found
    varying = frozenset(name for name in one if one[name] != other.get(name))
    changes = tuple(trace.read_text(encoding="utf-8").splitlines())
    undisturbed = Undisturbed(one, varying)
    return Subject(command, folder, inputs, undisturbed, changes, cpu_seconds, largest)


def trial(subject: Subject, disturb: Disturb, random: Random) -> str:
    """What is wrong after a disturbed run, and after the same command once more; or nothing.

    Raises NotDisturbedError if the command ended first.
    """
    clear(subject.folder, subject.inputs)
    if wrong := disturb(subject, random):
        return wrong
    ending = subject.run()
    if ending.code:
        return f"run again, it ends with {ending.code}: {ending.last_line}"
    return subject.undisturbed.difference(read_files(subject.folder, subject.inputs))


def kill_at_any_time(subject: Subject, random: Random) -> str:
    """Up to three kills, each after a random part of the processor time."""
    return _kill(random, lambda: _kill_by_time(subject, random))


def kill_at_a_change(subject: Subject, random: Random) -> str:
    """Up to three kills, each in the instant before some change of a file."""
    return _kill(random, lambda: _kill_by_change(subject, random, range_of(subject)))


def kill_at_a_rename(subject: Subject, random: Random) -> str:
    """Up to three kills, each in the instant before or after a renaming."""
    renames = [n for n, event in enumerate(subject.changes, 1) if event == instants.RENAME]
    near = sorted({n + by for n in renames for by in (0, 1)})
    return _kill(random, lambda: _kill_by_change(subject, random, near))


def fill_the_disk(subject: Subject, random: Random) -> str:
    """No file can be made from some change on, or none can grow above some size."""
    if random.random() < 0.5:
        number = random.choice(range_of(subject))
        ending = subject.run(lambda: instants.fill_disk_at(subject.folder, number))
    else:
        size = int(subject.largest ** random.uniform(0.3, 1))
        ending = subject.run(lambda: instants.limit_files(size))
    if ending.code and not ending.is_refusal:
        return f"a full disk ends with {ending.code}: {ending.last_line}"
    if not ending.code:
        difference = subject.undisturbed.difference(read_files(subject.folder, subject.inputs))
        if difference:
            return f"a full disk passes for success: {difference}"
    return ""


def write_twice(subject: Subject, random: Random) -> str:
    """The same command twice at once: either is refused in a sentence, or both end well."""
    started = []
    for _ in range(2):
        started.append(start(subject.folder, subject.command))
        time.sleep(random.uniform(0, subject.cpu_seconds / 2))
    endings = [wait(each, LIMIT) for each in started]
    for ending in endings:
        if ending.code and not ending.is_refusal:
            return f"of two writers, one ends with {ending.code}: {ending.last_line}"
    if all(ending.code for ending in endings):
        return f"of two writers, both are refused: {endings[0].last_line}"
    difference = subject.undisturbed.difference(read_files(subject.folder, subject.inputs))
    return f"after two writers, {difference}" if difference else ""


def damage(subject: Subject, random: Random) -> str:
    """A bit flips in a file of unfinished work, or its end is lost: harmless, or named."""
    _kill_by_change(subject, random, range_of(subject))
    names = sorted(read_files(subject.folder, subject.inputs))
    files = [name for name in names if (subject.folder / name).stat().st_size]
    if not files:
        raise NotDisturbedError
    name = random.choice(files)
    path = subject.folder / name
    content = bytearray(path.read_bytes())
    place = random.randrange(len(content))
    if random.random() < 0.3:
        del content[place:]
    else:
        content[place] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    ending = subject.run()
    # A line of the screen may break anywhere.
    printed = "".join(ending.printed.split())
    is_named = any(str(each) in printed for each in (name, *Path(name).parents[:-1]))
    if ending.code == 0:
        found = read_files(subject.folder, subject.inputs)
        if name in subject.undisturbed.files and path.read_bytes() == content:
            found[name] = subject.undisturbed.files[name]  # a result that nobody read again
        difference = subject.undisturbed.difference(found)
        clear(subject.folder, subject.inputs)
        if name not in subject.undisturbed.files and is_named:
            return ""  # unfinished work that stays where it is, with a caution
        return f"byte {place} of {name} was damaged, and {difference}" if difference else ""
    clear(subject.folder, subject.inputs)  # what the sentence advises
    if ending.is_refusal and is_named:
        return ""
    return f"damage of {name} at {place} ends with {ending.code}: {ending.last_line}"


DISTURBANCES: Mapping[str, Disturb] = {
    "kill": kill_at_any_time,
    "kill at a change": kill_at_a_change,
    "kill at a rename": kill_at_a_rename,
    "full disk": fill_the_disk,
    "two writers": write_twice,
    "damage": damage,
}


def range_of(subject: Subject) -> range:
    """The numbers of the changes that an undisturbed run makes."""
    return range(1, len(subject.changes) + 1)


def _kill(random: Random, kill: Callable[[], Ending]) -> str:
    for number in range(random.choice((1, 1, 2, 3))):
        ending = kill()
        if ending.code in KILLED:
            continue
        if ending.code:
            return f"after kill {number}, it ends with {ending.code}: {ending.last_line}"
        if number == 0:
            raise NotDisturbedError
        break
    return ""


def _kill_by_time(subject: Subject, random: Random) -> Ending:
    seconds = random.uniform(0, subject.cpu_seconds)
    return subject.run(lambda: instants.kill_after(seconds))


def _kill_by_change(subject: Subject, random: Random, numbers: range | list[int]) -> Ending:
    number = random.choice(numbers)
    return subject.run(lambda: instants.kill_at(subject.folder, number))
