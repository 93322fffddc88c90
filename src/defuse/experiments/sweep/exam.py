"""What every model of a sweep is asked."""

import hashlib
from dataclasses import dataclass

from defuse.evaluate import Settings, evaluate_questions
from defuse.evaluate.sources import Asking, TokenFiles, build_perturbation, load_part
from defuse.experiments.core.answers import CLEAN, FORGET, Answers, sheet_of
from defuse.models.load import LoadedModel
from defuse.questions import (
    CONTROL_TOKEN,
    FORGET_TOKEN,
    ORIGINAL,
    Perturbation,
    Position,
    Question,
    Score,
)


@dataclass(frozen=True)
class Sources:
    """Where questions and tokens come from and how they are asked, as `defuse evaluate` has it."""

    forget: str
    retain: str
    forget_subject: str | None = None
    retain_subject: str | None = None
    score: Score = "letters"
    few_shot: int = 0
    dev: str | None = None
    limit: int | None = None
    tokens: TokenFiles | None = None
    position: Position = "choice"
    sentence: str | None = None


@dataclass(frozen=True)
class Exam:
    """Questions about what is forgotten, and others; those also with stray tokens, if any."""

    forget: tuple[Question, ...]
    retain: tuple[Question, ...]
    forget_settings: Settings
    retain_settings: Settings
    perturbation: Perturbation | None = None

    @property
    def digest(self) -> str:
        """Equal for equal questions, asked alike."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def answers(self, loaded: LoadedModel) -> Answers:
        """By form: "forget", "clean" and, with a perturbation, such as "before/control"."""
        forgotten = evaluate_questions(loaded, self.forget, self.forget_settings)
        kept = evaluate_questions(loaded, self.retain, self.retain_settings, self.perturbation)
        sheets = {FORGET: sheet_of(forgotten, ORIGINAL), CLEAN: sheet_of(kept, ORIGINAL)}
        if self.perturbation is not None:
            position = self.perturbation.position
            sheets[f"{position}/control"] = sheet_of(kept, CONTROL_TOKEN)
            sheets[f"{position}/forget"] = sheet_of(kept, FORGET_TOKEN)
        return sheets


def build_exam(sources: Sources, model: str) -> Exam:
    """Read everything; `model`'s tokenizer matches controls. Raises UsageError as evaluate does."""
    asking = Asking(sources.few_shot, sources.limit, sources.score)
    forget = load_part(sources.forget, sources.forget_subject, sources.dev, asking)
    retain = load_part(sources.retain, sources.retain_subject, sources.dev, asking)
    perturbation = None
    if sources.tokens is not None:
        how = (sources.tokens, sources.position, sources.sentence, model, asking.seed)
        perturbation = build_perturbation(*how)
    return Exam(
        tuple(forget.questions),
        tuple(retain.questions),
        forget.settings,
        retain.settings,
        perturbation,
    )
