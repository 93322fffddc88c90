"""The answers of a model, question by question, and the settings of an evaluation."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from defuse.questions import (
    ORIGINAL,
    Perturbation,
    Question,
    Score,
    Variant,
    few_shot_part,
    given_questions,
)
from defuse.utils.config import UNCHECKED, Count, check_fields


@dataclass(frozen=True)
class Settings:
    """How questions are asked.

    `letters` ranks " A", " B", … after the lettered choices; `cloze` ranks the choices' own texts.
    `few_shot` holds the answered examples in front, in order. `seed` is that of perturbations and
    bootstraps. `token_budget`: tokens of a batch, padding included; None chooses by device.
    """

    score: Score = "letters"
    subject: str | None = None
    few_shot: Annotated[tuple[Question, ...], UNCHECKED] = ()
    seed: int = 42
    token_budget: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "few_shot", given_questions(self.few_shot, "few_shot"))


@dataclass(frozen=True)
class Part:
    """Questions with the same settings: a subject of a suite, with its description and examples."""

    questions: Annotated[tuple[Question, ...], UNCHECKED]
    settings: Settings

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "questions", given_questions(self.questions, "questions"))

    def standing_alone(self) -> list[Question]:
        """The questions with description and examples in their stems, for other settings.

        Asked without a subject and examples, they have the same prompts.
        """
        settings = self.settings
        front = few_shot_part(settings.subject, settings.few_shot, settings.score)
        return [replace(each, stem=front + each.stem.strip()) for each in self.questions]


@dataclass(frozen=True)
class MCAnswer:
    """A model's answer to one variant of a question.

    `logprobs`: the summed log-probability (nats) of each choice. `truncated`: the prompt was too
    long for the model and was cut on the left.
    """

    question: Question
    logprobs: tuple[float, ...]
    truncated: bool

    @property
    def choice(self) -> int:
        """The choice with the highest log-probability, the first of equals (lm-eval's acc)."""
        return max(range(len(self.logprobs)), key=self.logprobs.__getitem__)

    @property
    def choice_norm(self) -> int:
        """The same, per character of the choice's text (lm-eval's acc_norm); for cloze scoring."""
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
        """The log-probability of the right answer among the choices (nats)."""
        return self.among_choices[self.question.answer]

    @property
    def among_choices(self) -> tuple[float, ...]:
        """Each choice's log-probability among the choices (nats); probabilities sum to 1."""
        top = max(self.logprobs)
        total = sum(math.exp(value - top) for value in self.logprobs)
        return tuple(value - top - math.log(total) for value in self.logprobs)


def read_row(
    questions: Iterable[Question], values: Sequence[float], cut: Sequence[bool]
) -> list[MCAnswer]:
    """The answers of a row: `values` of each question's choices, one question after the other.

    `cut`: whether each of the prompts behind `values` was cut on the left.
    """
    answers, start = [], 0
    for question in questions:
        own = slice(start, start + len(question.choices))
        answers.append(MCAnswer(question, tuple(values[own]), any(cut[own])))
        start = own.stop
    return answers


@dataclass(frozen=True)
class Evaluation:
    """One model's answers to one list of questions.

    `answers` holds the variant "original" and, with a perturbation, "forget_token" and
    "control_token", each in the questions' order. `prompt_hash` (sha256) is equal for equal
    prompts, whatever the model. With several parts, `settings` have no subject and the examples of
    all parts.
    """

    model: str
    settings: Settings
    perturbation: Perturbation | None
    answers: Mapping[Variant, Sequence[MCAnswer]]
    prompt_hash: str
    seconds: float

    def correct(self, variant: Variant = ORIGINAL) -> list[bool]:
        """Whether each answer is right."""
        return [answer.is_correct for answer in self.answers[variant]]

    def answer_logprobs(self, variant: Variant = ORIGINAL) -> list[float]:
        """The log-probability of each right answer among the choices (nats)."""
        return [answer.answer_logprob for answer in self.answers[variant]]
