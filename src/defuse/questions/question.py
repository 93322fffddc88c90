"""A multiple-choice question as frozen data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from defuse.utils.config import Natural, check_fields
from defuse.utils.errors import UsageError

Variant = Literal["original", "forget_token", "control_token"]
ORIGINAL: Final = "original"
FORGET_TOKEN: Final = "forget_token"  # noqa: S105 (no password)
CONTROL_TOKEN: Final = "control_token"  # noqa: S105
Position = Literal["choice", "stem", "before"]
FEWEST, MOST = 2, 26  # choices of a question: each has a letter


@dataclass(frozen=True)
class Replaced:
    """The token that a perturbation put into a question, and its place.

    `index` is the replaced choice (`choice`) or the word that follows the token (`stem`); it is 0
    for a sentence before the question. `original` is the text of the replaced choice, else empty.
    `foreign`: the unperturbed question does not mention the token.
    """

    position: Position
    token: str
    index: Natural
    original: str
    foreign: bool

    def __post_init__(self) -> None:
        check_fields(self, "replaced")


@dataclass(frozen=True)
class Question:
    """A question with 2 to 26 choices, of which number `answer` (counted from 0) is right.

    `prompt`, if given, is the text that cloze scoring puts before the choices, verbatim. `before`
    is a sentence in front of the question. `replaced` is set on perturbed questions only. Raises
    UsageError for another number of choices, and if `answer` is none of them.
    """

    id: str
    stem: str
    choices: tuple[str, ...]
    answer: int
    subject: str | None = None
    prompt: str | None = None
    before: str = ""
    replaced: Replaced | None = None

    def __post_init__(self) -> None:
        check_fields(self, f"question {self.id!r}")
        count = len(self.choices)
        if not FEWEST <= count <= MOST:
            raise UsageError(
                f"question {self.id!r}: choices are {count}; give {FEWEST} to {MOST} of them"
            )
        if self.answer not in range(count):
            raise UsageError(
                f"question {self.id!r}: answer is {self.answer}; give 0 to {count - 1}"
            )

    def mentions(self, token: str) -> bool:
        """Whether `token` occurs in the question's own text, in upper or lower case."""
        texts = (self.stem, *self.choices, self.prompt or "")
        return any(token.casefold() in text.casefold() for text in texts)


def chance(questions: Sequence[Question]) -> float:
    """The expected accuracy of a guess: the mean of 1 / number of choices."""
    return sum(1 / len(question.choices) for question in questions) / len(questions)
