"""What an attacked model is asked, before and after."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.beside import once_with
from defuse.attacks.notes import Notes
from defuse.evaluate import MCAnswer, Settings, evaluate_questions
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Question, ask
from defuse.utils.errors import UsageError

FORGET, RETAIN = "forget", "retain"
Noted = Sequence[tuple[Sequence[float], bool]]  # of each question: logprobs, truncated
Answers = Mapping[str, Sequence[MCAnswer]]  # of each set, in the questions' order


@dataclass(frozen=True)
class Material:
    """Questions about what was to be forgotten and what was to be kept, and texts about either.

    `settings`: how questions are asked. The texts are for attacks that train, measure or compare
    on running text; where none are given, some take the questions instead. Raises
    UsageError where a set of questions is empty.
    """

    forget: Sequence[Question]
    retain: Sequence[Question]
    settings: Settings = field(default_factory=Settings)
    forget_texts: Sequence[str] = ()
    retain_texts: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, questions in self.sets.items():
            if not questions:
                raise UsageError(f"{name}: there are no questions; give at least one")

    @property
    def sets(self) -> Mapping[str, Sequence[Question]]:
        """Both sets of questions by name."""
        return {FORGET: self.forget, RETAIN: self.retain}

    def given_texts(self, name: str) -> list[str]:
        """The texts of a set, if any."""
        return list({FORGET: self.forget_texts, RETAIN: self.retain_texts}[name])

    def texts_of(self, name: str) -> Sequence[str]:
        """The texts of a set, else its questions as they are asked, without their answers."""
        return self.given_texts(name) or [
            ask(question, self.settings.score) for question in self.sets[name]
        ]


def ask_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: Settings,
    notes: Notes,
    name: str,
) -> list[MCAnswer]:
    """How `model` answers, asked once and noted as `name`."""
    return _ask(lambda: model, tokenizer, questions, settings, notes, name)


def noted(outcomes: Sequence[MCAnswer]) -> Noted:
    """What notes keep of answers."""
    return [(outcome.logprobs, outcome.truncated) for outcome in outcomes]


def restored(questions: Sequence[Question], kept: Noted) -> list[MCAnswer]:
    """The answers again."""
    return [
        MCAnswer(question, tuple(logprobs), truncated)
        for question, (logprobs, truncated) in zip(questions, kept, strict=True)
    ]


def ask_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    notes: Notes,
    name: str,
) -> Answers:
    """How `model` answers both sets, noted as "`name`/forget" and "`name`/retain"."""
    return ask_made(lambda: model, tokenizer, material, notes, name)


def ask_made(
    make: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    notes: Notes,
    name: str,
) -> Answers:
    """As `ask_all`, of a model that is made once, and not at all where all answers are noted."""
    made = cache(make)
    return {
        each: _ask(made, tokenizer, questions, material.settings, notes, f"{name}/{each}")
        for each, questions in material.sets.items()
    }


def _ask(
    make: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: Settings,
    notes: Notes,
    name: str,
) -> list[MCAnswer]:
    def find(model: PreTrainedModel) -> Noted:
        loaded = LoadedModel(model, tokenizer, name)
        return noted(evaluate_questions(loaded, questions, settings).answers[ORIGINAL])

    return restored(questions, once_with(notes, name, make, find))
