"""Where answers lie, and how they are read back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from defuse.real.grid import Run

# Question id -> (answered right, log-probability of the right answer among the four, in nats)
Sheet = Mapping[str, tuple[bool, float]]
# Form -> sheet. Forms: "elements", "clean", "before/forget", "before/control", "choice/…"
Answers = Mapping[str, Sheet]


def answers_path(folder: Path, run: Run, step: int) -> Path:
    """The file of one checkpoint."""
    return folder / "answers" / run.name / f"step-{step:04}.json"


def base_path(folder: Path) -> Path:
    """The file of the base model."""
    return folder / "answers" / "base.json"


def load_base(folder: Path) -> Answers:
    """The base model's answers."""
    return _load(base_path(folder))


def load_answers(runs: Sequence[Run], folder: Path) -> dict[Run, dict[int, Answers]]:
    """Every checkpoint's answers by run and step; runs without any are left out."""
    found = {}
    for run in runs:
        paths = sorted(answers_path(folder, run, 0).parent.glob("step-*.json"))
        if paths:
            found[run] = {int(path.stem.removeprefix("step-")): _load(path) for path in paths}
    return found


def _load(path: Path) -> Answers:
    answers = json.loads(path.read_text(encoding="utf-8"))["answers"]
    return {
        form: {name: (bool(right), float(logprob)) for name, (right, logprob) in sheet.items()}
        for form, sheet in answers.items()
    }
