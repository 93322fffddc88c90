"""Questions and tokens of an evaluation, from files and the hub."""

from dataclasses import dataclass

from defuse.data.corpora import load_texts
from defuse.evaluate.answers import Part, Settings
from defuse.models.load import load_tokenizer
from defuse.models.locate import locate
from defuse.questions import (
    SENTENCE,
    Perturbation,
    Position,
    Question,
    Score,
    draw_controls,
    load_questions,
    load_tokens,
)
from defuse.utils.config import Count, Natural, check_fields
from defuse.utils.errors import UsageError


@dataclass(frozen=True)
class Asking:
    """How to ask: the number of answered examples, and of questions (of each subject).

    `score`: None takes the suite's own, or letters.
    """

    few_shot: Natural = 0
    limit: Count | None = None
    score: Score | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TokenFiles:
    """Files of forget-tokens and control tokens, or a corpus to draw control tokens from."""

    forget: str
    control: str | None = None
    control_corpus: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def load_part(source: str, subject: str | None, dev: str | None, asking: Asking) -> Part:
    """The questions of a file or hub dataset, with the examples of `dev`."""
    questions = load_questions(source, subject=subject, limit=asking.limit)
    examples = few_shot_examples(dev, asking.few_shot, subject)
    if asked_twice := {q.stem for q in questions} & {q.stem for q in examples}:
        raise UsageError(
            f"dev: {min(asked_twice)[:60]!r} is an example and also asked, behind its own answer; "
            "take examples that are not in the questions"
        )
    return Part(questions, Settings(asking.score or "letters", subject, examples, asking.seed))


def few_shot_examples(dev: str | None, count: int, subject: str | None) -> tuple[Question, ...]:
    """The first `count` questions of `dev`. Raises UsageError if it has fewer."""
    if count == 0:
        if dev is not None:
            raise UsageError(f"dev: {dev} is not used without --few-shot; say how many to take")
        return ()
    if dev is None:
        raise UsageError(f"dev: missing; give --dev FILE for --few-shot {count}")
    examples = load_questions(dev, subject=subject, limit=count, split="dev")
    if len(examples) < count:
        raise UsageError(f"few-shot: is {count}, but {dev} has {len(examples)}; give fewer")
    return examples


def build_perturbation(
    files: TokenFiles, position: Position, sentence: str | None, model: str, seed: int
) -> Perturbation:
    """Forget-tokens with control tokens: read, or drawn to match with `model`'s tokenizer."""
    if (files.control is None) == (files.control_corpus is None):
        raise UsageError(
            "control: every perturbation is run with its control; give one of --control FILE and "
            "--control-corpus FILE to draw control tokens from"
        )
    if sentence is not None and position != "before":
        raise UsageError(f"sentence: goes with --position before, not {position}; leave it out")
    tokens = load_tokens(files.forget)
    if files.control is not None:
        controls = load_tokens(files.control)
    else:
        texts = map(str, load_texts(files.control_corpus or ""))
        controls = draw_controls(tokens, texts, load_tokenizer(locate(model)), seed)
    return Perturbation(tokens, position, controls, sentence or SENTENCE)
