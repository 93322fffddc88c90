"""`python -m dev.soak`: disturbs commands at random, and prints how many end as undisturbed."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

# One thread, so that a command can be forked; no network. Both are read when torch is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from dev.forks import import_everything
from dev.soak.outcome import read_files
from dev.soak.trial import DISTURBANCES, NotDisturbedError, Subject, observe, trial
from dev.soak.workplace import COMMANDS, make_inputs

HALF_AN_HOUR = 0.5


@dataclass
class Tally:
    """Trials of one command with one disturbance, and the sentences of those that went wrong."""

    trials: int = 0
    wrong: list[str] = field(default_factory=list)


Tallies = dict[tuple[str, str], Tally]


def main(arguments: Sequence[str] | None = None) -> int:
    """Disturb commands until the trials or the hours are over; returns 1 if one went wrong."""
    asked = _parser().parse_args(arguments)
    end = time.monotonic() + 3600 * asked.hours
    tallies: Tallies = {}
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        subjects = _subjects(Path(place).resolve(), asked.verbs)
        for number, name, kind, wrong in _trials(subjects, asked.seed):
            tally = tallies.setdefault((name, kind), Tally())
            tally.trials += 1
            if wrong:
                tally.wrong.append(wrong)
                print(f"trial {number}, {name}, {kind}: {wrong}", flush=True)
            done = sum(each.trials for each in tallies.values())
            if done >= asked.kills or time.monotonic() > end:
                break
    print(table(tallies))
    return int(any(tally.wrong for tally in tallies.values()))


def table(tallies: Mapping[tuple[str, str], Tally]) -> str:
    """A row for each verb and disturbance, in Markdown."""
    lines = ["| verb | disturbance | trials | right | what was wrong |", "|---|---|---|---|---|"]
    for (name, kind), tally in sorted(tallies.items()):
        right = tally.trials - len(tally.wrong)
        wrong = "; ".join(sorted(set(tally.wrong)))
        lines.append(f"| {name} | {kind} | {tally.trials} | {right} | {wrong} |")
    trials = sum(tally.trials for tally in tallies.values())
    right = trials - sum(len(tally.wrong) for tally in tallies.values())
    return "\n".join([*lines, f"| all | | {trials} | {right} | |"])


def _subjects(place: Path, verbs: Sequence[str]) -> dict[str, Subject]:
    import_everything()
    subjects = {}
    for name in verbs:
        folder = place / name
        folder.mkdir()
        make_inputs(folder)
        subject = observe(COMMANDS[name], folder, read_files(folder))
        subjects[name] = subject
        varying = ", ".join(sorted(subject.undisturbed.varying)) or "none"
        print(
            f"{name}: {subject.cpu_seconds:.1f} s, {len(subject.changes)} changes of files; "
            f"files that vary by themselves: {varying}",
            flush=True,
        )
    return subjects


def _trials(subjects: Mapping[str, Subject], seed: int) -> Iterator[tuple[int, str, str, str]]:
    """Trials without end, every pair of a verb and a disturbance in turn, in random order."""
    pairs = [(name, kind) for name in subjects for kind in DISTURBANCES]
    number = 0
    while True:
        Random(f"{seed} {number}").shuffle(pairs)  # noqa: S311 (no secret)
        for name, kind in pairs:
            number += 1
            random = Random(f"{seed} {number}")  # noqa: S311 (no secret)
            try:
                wrong = trial(subjects[name], DISTURBANCES[kind], random)
            except NotDisturbedError:
                continue
            yield number, name, kind, wrong


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=10**9, help="Stop after so many trials.")
    parser.add_argument("--hours", type=float, default=HALF_AN_HOUR, help="Stop after so long.")
    parser.add_argument("--seed", type=int, default=0, help="Of all that is drawn.")
    parser.add_argument("--verbs", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    return parser


if __name__ == "__main__":
    sys.exit(main())
