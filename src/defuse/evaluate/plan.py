"""A call of `defuse evaluate` that can be run, and the files that it writes."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defuse.evaluate.answers import Part
from defuse.evaluate.groups import Groups
from defuse.models.load import load_outline, resolve_device, resolve_dtype
from defuse.questions import Perturbation
from defuse.utils.errors import UsageError
from defuse.utils.files import check_name, check_writable


@dataclass(frozen=True)
class Plan:
    """Models and what they are evaluated on; `out` is a file for one model, a folder for several.

    `reference`: the model before unlearning. `groups`: the subjects of each group that gets an
    accuracy of its own. `text`: a text for perplexity; `prompts`: texts to continue. `sources` says
    where questions and tokens came from, and `keep_text` writes the questions' texts into the
    result files.
    """

    models: tuple[str, ...]
    out: Path
    parts: tuple[Part, ...]
    perturbation: Perturbation | None = None
    reference: str | None = None
    groups: Groups = field(default_factory=dict)
    text: str | None = None
    prompts: tuple[str, ...] | None = None
    device: str = "auto"
    dtype: str = "auto"
    sources: Mapping[str, Any] = field(default_factory=dict)
    keep_text: bool = True

    @property
    def all_models(self) -> tuple[str, ...]:
        """The models, and the reference model before them."""
        first = () if self.reference is None else (self.reference,)
        return tuple(dict.fromkeys((*first, *self.models)))

    @property
    def count(self) -> int:
        """The number of questions."""
        return sum(len(part.questions) for part in self.parts)

    @property
    def digest(self) -> str:
        """A hash of the questions and of all that decides how they are asked."""
        return _hash(repr((self.parts, self.perturbation)))

    def file(self, model: str) -> Path:
        """The result file of one model."""
        return self.out if len(self.models) == 1 else self.out / f"{_safe(model)}.json"

    def scores(self, model: str) -> Path:
        """The folder of one model's unfinished scores."""
        # "a/b" and "../a/b" are two models with one safe name.
        return unfinished(self.out) / f"{_safe(model)}-{_hash(model)[:8]}"


def unfinished(out: Path) -> Path:
    """The folder next to `out` for unfinished work."""
    return out.with_name(f"{out.name}.partial")


def check_plan(plan: Plan) -> None:
    """Raise UsageError if `plan` cannot be run or written, before any weights are read."""
    _check_out(plan)
    resolve_device(plan.device)
    resolve_dtype(plan.dtype)
    for name in plan.all_models:
        load_outline(name, plan.dtype)


def _check_out(plan: Plan) -> None:
    several = len(plan.models) > 1
    if several and (plan.out.suffix == ".json" or plan.out.is_file()):
        raise UsageError(
            f"out: {plan.out} is one file for {len(plan.models)} models; give a folder"
        )
    if not several and plan.out.is_dir():
        raise UsageError(f"out: {plan.out} is a folder; give the name of a .json file")
    files = [plan.file(name) for name in plan.models]
    if len(set(files)) < len(files):
        raise UsageError("MODEL: two of the models have the same name; give each once")
    for file in files:
        check_name(file, "out")
    check_writable(files[0].parent, "out")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")
