"""What an evaluation found, question by question."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defuse.questions import ORIGINAL, Perturbation, Question, Score, Variant
from defuse.utils.errors import check_choices


@dataclass(frozen=True)
class Settings:
    """How questions are asked.

    `letters` ranks " A" to " D" behind the lettered choices, `cloze` the choices' own texts.
    `few_shot` are the answered examples in front, in order. `seed` draws perturbations and
    bootstraps. `token_budget`: tokens of one batch with padding; None suits the device.
    """

    score: Score = "letters"
    subject: str | None = None
    few_shot: tuple[Question, ...] = ()
    seed: int = 42
    token_budget: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class Part:
    """Questions asked alike: a subject of a suite, with its description line and its examples."""

    questions: tuple[Question, ...]
    settings: Settings


@dataclass(frozen=True)
class MCAnswer:
    """How a model answered one question in one form.

    `logprobs`: summed log-probability (nats) of each answer. `truncated`: the prompt
    was too long for the model and cut on the left.
    """

    question: Question
    logprobs: tuple[float, ...]
    truncated: bool

    @property
    def choice(self) -> int:
        """The first answer of highest log-probability (lm-eval's acc)."""
        return max(range(len(self.logprobs)), key=self.logprobs.__getitem__)

    @property
    def choice_norm(self) -> int:
        """The same per character of the choice's text (lm-eval's acc_norm); for cloze scoring."""
        lengths = [max(1, len(text)) for text in self.question.choices]
        return max(range(len(lengths)), key=lambda i: self.logprobs[i] / lengths[i])

    @property
    def is_correct(self) -> bool:
        return self.choice == self.question.answer

    @property
    def is_correct_norm(self) -> bool:
        return self.choice_norm == self.question.answer

    @property
    def answer_logprob(self) -> float:
        """Log-probability of the right answer among the choices (nats)."""
        top = max(self.logprobs)
        total = sum(math.exp(value - top) for value in self.logprobs)
        return self.logprobs[self.question.answer] - top - math.log(total)


@dataclass(frozen=True)
class Evaluation:
    """One model's answers to one list of questions.

    `answers` holds the variant "original" and, with a perturbation, "forget_token" and
    "control_token", each in the questions' order. `prompt_hash` (sha256) is equal for equal
    prompts, whatever the model. Of several parts, `settings` name no subject and hold the examples
    of all.
    """

    model: str
    settings: Settings
    perturbation: Perturbation | None
    answers: Mapping[Variant, Sequence[MCAnswer]]
    prompt_hash: str
    seconds: float

    def correct(self, variant: Variant = ORIGINAL) -> list[bool]:
        """Whether each question was answered right."""
        return [answer.is_correct for answer in self.answers[variant]]

    def answer_logprobs(self, variant: Variant = ORIGINAL) -> list[float]:
        """Each right answer's log-probability among the choices (nats)."""
        return [answer.answer_logprob for answer in self.answers[variant]]
