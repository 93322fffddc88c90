"""The questions of a benchmark under attack by GCG suffixes, which are searched to mislead.

The paper attacks all 14042 questions of MMLU, which would take months on one GPU. Here a given
number of questions is attacked, evenly spread over all, with the search of Zou et al. (2307.15043,
`defuse.attacks.gcg`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from defuse.attacks.data import RETAIN, AttackData
from defuse.attacks.findings import open_findings
from defuse.attacks.gcg import GCG, check, run
from defuse.attacks.results import Result
from defuse.data.sampling import spread as evenly
from defuse.evaluate import Interval, Settings
from defuse.evaluate.answers import Part
from defuse.models.load import load_model, load_outline
from defuse.questions import Question, few_shot_part
from defuse.utils.errors import require
from defuse.utils.identity import model_identity
from defuse.utils.progress import SILENT, Progress


@dataclass(frozen=True)
class Effort:
    """How many questions are attacked (0 = none), and how hard.

    The search takes at most `steps` steps a question and tries `width` suffixes in each.
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
        """What the row under attack needs if no question is attacked."""
        return (
            "--gcg N: how many questions to attack; each takes up to "
            f"{self.steps} steps of {self.width} suffixes"
        )

    def config(self, seed: int) -> GCG:
        """The attack's settings: a suffix for each question that the model answers correctly."""
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
    """Accuracies on the same `n` questions: original, with random suffixes, and under attack."""

    n: int
    before: Interval
    random: Interval
    after: Interval


def spread(parts: Sequence[Part], count: int) -> list[Question]:
    """Take `count` questions, evenly spaced over all parts; all questions if there are fewer.

    The description and examples of its part become the start of each question's stem, so that its
    prompt is the same when it is asked alone.
    """
    return evenly(list(chain.from_iterable(_whole(part) for part in parts)), count)


def _whole(part: Part) -> list[Question]:
    settings = part.settings
    front = few_shot_part(settings.subject, settings.few_shot, settings.score)
    return [replace(each, stem=front + each.stem.strip()) for each in part.questions]


@dataclass(frozen=True)
class Attack:
    """The same questions and search for every model; unfinished work is kept in `folder`."""

    questions: Sequence[Question]
    config: GCG
    folder: Path
    device: str = "auto"
    dtype: str = "auto"

    @property
    def data(self) -> AttackData:
        """The questions as a retain set; GCG requires a forget set too, on which nothing runs."""
        settings = Settings("letters", seed=self.config.seed)
        return AttackData(self.questions[:1], self.questions, settings)

    def check(self, name: str) -> None:
        """Raise UsageError if GCG refuses the model `name`, without reading its weights."""
        outline = load_outline(name, self.dtype)
        check(outline.model, outline.tokenizer, self.data, self.config)

    def on(self, name: str, role: str, progress: Progress = SILENT) -> Result:
        """Attack the model `name`, whose unfinished work is named after its `role`.

        Each step is on disk before the next one starts. Progress counts steps; a question whose
        search ends early counts with all its steps. Raises UsageError if the unfinished work
        belongs to other weights or another search, and for what GCG refuses.
        """
        loaded = load_model(name, device=self.device, dtype=self.dtype)
        identity = {
            "questions": hashlib.sha256(repr(self.questions).encode()).hexdigest(),
            "settings": asdict(self.config),
            **model_identity(loaded.model, loaded.tokenizer),
        }
        return run(
            loaded.model,
            loaded.tokenizer,
            self.data,
            self.config,
            findings=open_findings(self.folder / f"{role}.jsonl", identity),
            progress=_Titled(f"{name} under GCG", progress),
        )


@dataclass(frozen=True)
class _Titled:
    """Progress whose stage has a title of its own."""

    title: str
    progress: Progress

    def start(self, name: str, total: int) -> None:  # noqa: ARG002 (the title takes its place)
        self.progress.start(self.title, total)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.progress.advance(count, note)


def accuracies(result: Result) -> Accuracies:
    """The accuracies of an `Attack`'s result."""
    random, attacked = (condition.effects[RETAIN] for condition in result.conditions)
    return Accuracies(
        attacked.after.n,
        attacked.before.accuracy,
        random.after.accuracy,
        attacked.after.accuracy,
    )
