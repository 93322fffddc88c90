"""A benchmark's questions under attack: each with a GCG suffix that searches a wrong answer.

The paper attacks all 14042 questions of MMLU, which is months of a GPU; here as many as are asked
for, evenly spread over all. It is Zou et al.'s search (2307.15043, `defuse.attacks.gcg`).
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from defuse.attacks.data import RETAIN, Material
from defuse.attacks.dry_run import rehearse
from defuse.attacks.gcg import GCG, KIND, run
from defuse.attacks.notes import open_notes
from defuse.attacks.registry import Target
from defuse.attacks.results import Result
from defuse.data.sampling import spread as evenly
from defuse.evaluate import Interval, Settings
from defuse.evaluate.answers import Part
from defuse.evaluate.loglikelihood import OnScored
from defuse.evaluate.run import OnModel
from defuse.models.load import load_model, load_outline
from defuse.questions import Question, few_shot_part
from defuse.utils.errors import require
from defuse.utils.provenance import fingerprint

STEP = re.compile(r"break, question (\d+) .*/step (\d+)", re.DOTALL)  # as GCG notes it


@dataclass(frozen=True)
class Effort:
    """How many questions are attacked (0 = none), and how long each is at most.

    `steps`, in each of which `width` suffixes are tried.
    """

    questions: int = 0
    steps: int = GCG.steps
    width: int = GCG.search_width

    def __post_init__(self) -> None:
        require(self.questions >= 0, "gcg", self.questions, "is below 0; give 0 or more")
        require(self.steps >= 1, "gcg-steps", self.steps, "is below 1; give 1 or more")
        require(self.width >= 1, "gcg-width", self.width, "is below 1; give 1 or more")

    @property
    def needs(self) -> str:
        """What is said where nothing is attacked."""
        return (
            "--gcg N: how many questions to attack; each takes up to "
            f"{self.steps} steps of {self.width} suffixes"
        )

    def config(self, seed: int) -> GCG:
        """Each question is attacked alone; what is answered wrongly already stays as it is."""
        return GCG(
            aims=("break",),
            modes=("question",),
            steps=self.steps,
            search_width=self.width,
            questions=0,
            seed=seed,
        )


@dataclass(frozen=True)
class Accuracies:
    """Of one model on the same `n` questions: as they are, with random suffixes, under attack."""

    n: int
    before: Interval
    random: Interval
    after: Interval


def spread(parts: Sequence[Part], count: int) -> list[Question]:
    """`count` questions that lie evenly in all parts together; all where there are not as many.

    Each brings its part's description and examples along in its stem: asked by its letters, alone,
    it reads as it does in its part.
    """
    return evenly(list(chain.from_iterable(_whole(part) for part in parts)), count)


def _whole(part: Part) -> list[Question]:
    settings = part.settings
    front = few_shot_part(settings.subject, settings.few_shot, settings.score)
    return [replace(each, stem=front + each.stem.strip()) for each in part.questions]


@dataclass(frozen=True)
class Attack:
    """The same questions, searched the same way, for every model; notes are kept in `folder`."""

    questions: Sequence[Question]
    config: GCG
    folder: Path
    device: str = "auto"
    dtype: str = "auto"

    @property
    def material(self) -> Material:
        """A set to forget must be there, and nothing is searched on it."""
        settings = Settings("letters", seed=self.config.seed)
        return Material(self.questions[:1], self.questions, settings)

    def check(self, name: str) -> None:
        """Raise UsageError for what GCG refuses of the model `name`, without reading weights."""
        outline = load_outline(name, self.dtype)
        target = Target(outline.model, outline.tokenizer, self.material)
        rehearse(target, {KIND: self.config})

    def on(self, name: str, part: str, on_model: OnModel) -> Result:
        """Attack the model `name`, its notes named after the `part` it plays.

        Each step is on the disk before the next. Progress is told in steps of all questions, and a
        question that needs none or few of its own counts in full once it is through. Raises
        UsageError if notes there are of other weights or of another search, and for what GCG
        refuses.
        """
        most = len(self.questions) * self.config.steps
        reach = _reaching(on_model(f"{name} under GCG", most))
        loaded = load_model(name, device=self.device, dtype=self.dtype)
        identity = {
            "questions": hashlib.sha256(repr(self.questions).encode()).hexdigest(),
            "settings": asdict(self.config),
            "weights": fingerprint(loaded.model),
            "precision": str(loaded.model.dtype).removeprefix("torch."),
        }

        def on_found(found: str) -> None:
            reach(steps_behind(found, self.config.steps))

        notes = open_notes(self.folder / f"{part}.jsonl", identity, on_found)
        result = run(loaded.model, loaded.tokenizer, self.material, self.config, notes=notes)
        reach(most)
        return result


def steps_behind(found: str, steps: int) -> int:
    """How far a search's finding is, by its name: `steps` for each question before, and its own."""
    match = STEP.fullmatch(found)
    if match is None:
        return 0
    question, step = map(int, match.groups())
    return question * steps + step


def _reaching(on_steps: OnScored) -> Callable[[int], None]:
    """What is told how far all is, where `on_steps` is told how much further; never backwards."""
    reached = 0

    def reach(now: int) -> None:
        nonlocal reached
        if now > reached:
            on_steps(now - reached)
            reached = now

    return reach


def accuracies(result: Result) -> Accuracies:
    """The figures of an `Attack`."""
    random, attacked = (condition.effects[RETAIN] for condition in result.conditions)
    return Accuracies(
        attacked.after.n,
        attacked.before.accuracy,
        random.after.accuracy,
        attacked.after.accuracy,
    )
