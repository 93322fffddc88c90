"""Questions and texts that an attack is given, and the answers of a model to the questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.findings import Findings, compute_with
from defuse.data.given import given_strings
from defuse.evaluate import MCAnswer, Settings, evaluate_questions
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Question, ask, given_questions
from defuse.utils.config import UNCHECKED, check_fields
from defuse.utils.errors import UsageError

FORGET, RETAIN = "forget", "retain"
Answers = Mapping[str, Sequence[MCAnswer]]  # by question set, in the order of its questions
Stored = Sequence[tuple[Sequence[float], bool]]  # for each question: logprobs, truncated


@dataclass(frozen=True)
class AttackData:
    """Questions about the forget set and the retain set, and texts of either.

    `settings`: how the questions are asked. Texts are for attacks that train on them or measure
    something on them; if there are none, some attacks take the questions instead. Raises UsageError
    for an empty set of questions.
    """

    forget: Annotated[Sequence[Question], UNCHECKED]
    retain: Annotated[Sequence[Question], UNCHECKED]
    settings: Settings = field(default_factory=Settings)
    forget_texts: Annotated[Sequence[str], UNCHECKED] = ()
    retain_texts: Annotated[Sequence[str], UNCHECKED] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for name, questions in self.sets.items():
            object.__setattr__(self, name, given_questions(questions, name))
            texts = f"{name}_texts"
            object.__setattr__(self, texts, given_strings(getattr(self, texts), texts))
            if not self.sets[name]:
                raise UsageError(f"{name}: there are no questions; give at least one")

    @property
    def sets(self) -> Mapping[str, Sequence[Question]]:
        """Both sets of questions by name."""
        return {FORGET: self.forget, RETAIN: self.retain}

    def given_texts(self, name: str) -> list[str]:
        """The texts of a set; empty if none were given."""
        return list({FORGET: self.forget_texts, RETAIN: self.retain_texts}[name])

    def texts_of(self, name: str) -> Sequence[str]:
        """The texts of a set, or its questions as they are asked, without their answers."""
        return self.given_texts(name) or [
            ask(question, self.settings.score) for question in self.sets[name]
        ]


def ask_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: Settings,
    findings: Findings,
    name: str,
) -> list[MCAnswer]:
    """Return the answers of `model`, kept as the finding `name`."""
    return _ask(lambda: model, tokenizer, questions, settings, findings, name)


def ask_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    findings: Findings,
    name: str,
) -> Answers:
    """Return the answers of `model` to both sets, kept as "`name`/forget" and "`name`/retain"."""
    return ask_made(lambda: model, tokenizer, data, findings, name)


def ask_made(
    make: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    findings: Findings,
    name: str,
) -> Answers:
    """As `ask_all`, for a model that `make` returns; it is only called if answers are missing."""
    made = cache(make)
    return {
        each: _ask(made, tokenizer, questions, data.settings, findings, f"{name}/{each}")
        for each, questions in data.sets.items()
    }


def stored(outcomes: Sequence[MCAnswer]) -> Stored:
    """Convert answers to what is kept of them on disk."""
    return [(outcome.logprobs, outcome.truncated) for outcome in outcomes]


def outcomes_of(questions: Sequence[Question], kept: Stored) -> list[MCAnswer]:
    """Convert what is kept on disk back to answers."""
    return [
        MCAnswer(question, tuple(logprobs), truncated)
        for question, (logprobs, truncated) in zip(questions, kept, strict=True)
    ]


def _ask(
    make: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: Settings,
    findings: Findings,
    name: str,
) -> list[MCAnswer]:
    def compute(model: PreTrainedModel) -> Stored:
        loaded = LoadedModel(model, tokenizer, name)
        return stored(evaluate_questions(loaded, questions, settings).answers[ORIGINAL])

    return outcomes_of(questions, compute_with(findings, name, make, compute))
