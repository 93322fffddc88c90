"""Answers as sheets: where they lie, and how they are read back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from defuse.evaluate import Evaluation
from defuse.questions import Variant

# Forms of questions: those about what is forgotten, the others as they are, and, for those, a
# position and what was put there ("before/forget", "choice/control").
FORGET, CLEAN = "forget", "clean"

# Question id -> answered right, and the log-probability of the right answer among the four (nats);
# an experiment may keep more behind these two.
Sheet = Mapping[str, tuple[Any, ...]]
Answers = Mapping[str, Sheet]  # by form


class Named(Protocol):
    """A run of an experiment: `name` tells it from all others, `seed` from its like."""

    @property
    def name(self) -> str: ...

    @property
    def seed(self) -> int: ...


R = TypeVar("R", bound=Named)


def sheet_of(evaluation: Evaluation, variant: Variant) -> Sheet:
    """One form's answers as a sheet."""
    outcomes = evaluation.answers[variant]
    return {o.question.id: (o.is_correct, o.answer_logprob) for o in outcomes}


def answers_path(folder: Path, run: Named, step: int) -> Path:
    """The file of one checkpoint."""
    return folder / "answers" / run.name / f"step-{step:04}.json"


def base_path(folder: Path) -> Path:
    """The file of the base model."""
    return folder / "answers" / "base.json"


def load_base(folder: Path) -> Answers:
    """The base model's answers."""
    return load_sheets(base_path(folder))


def load_answers(runs: Sequence[R], folder: Path) -> dict[R, dict[int, Answers]]:
    """Every checkpoint's answers by run and step; runs without any are left out."""
    found = {}
    for run in runs:
        paths = sorted(answers_path(folder, run, 0).parent.glob("step-*.json"))
        if paths:
            found[run] = {int(path.stem.removeprefix("step-")): load_sheets(path) for path in paths}
    return found


def load_sheets(path: Path) -> Answers:
    """One file's answers."""
    answers = json.loads(path.read_text(encoding="utf-8"))["answers"]
    return {
        form: {name: tuple(values) for name, values in sheet.items()}
        for form, sheet in answers.items()
    }
