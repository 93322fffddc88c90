"""A four-choice question as frozen data."""

from dataclasses import dataclass
from typing import Final, Literal

from defuse.utils.errors import UsageError

Variant = Literal["original", "forget_token", "control_token"]
ORIGINAL: Final = "original"
FORGET_TOKEN: Final = "forget_token"  # noqa: S105 (no password)
CONTROL_TOKEN: Final = "control_token"  # noqa: S105
Position = Literal["choice", "stem", "before"]
Choices = tuple[str, str, str, str]


@dataclass(frozen=True)
class Replaced:
    """What a perturbation put where.

    `index` is the choice replaced (`choice`) or the word the token stands before (`stem`); 0 for a
    sentence before the question. `original` is the choice that stood there, else empty.
    `foreign`: the question did not mention the token by itself.
    """

    position: Position
    token: str
    index: int
    original: str
    foreign: bool


@dataclass(frozen=True)
class Question:
    """A question with four choices of which number `answer` (0 to 3) is right.

    `prompt`, if given, is what cloze scoring puts before the choices, verbatim. `before` is a
    sentence in front of the question; `replaced` is set on perturbed questions only.
    Raises UsageError unless there are four choices and `answer` is one of them.
    """

    id: str
    stem: str
    choices: Choices
    answer: int
    subject: str | None = None
    prompt: str | None = None
    before: str = ""
    replaced: Replaced | None = None

    def __post_init__(self) -> None:
        if len(self.choices) != 4:
            raise UsageError(
                f"question {self.id!r}: choices are {len(self.choices)}; give exactly four"
            )
        if self.answer not in range(4):
            raise UsageError(f"question {self.id!r}: answer is {self.answer}; give 0 to 3, or A-D")

    def mentions(self, token: str) -> bool:
        """Whether `token` occurs in the question's own text, in upper or lower case."""
        texts = (self.stem, *self.choices, self.prompt or "")
        return any(token.casefold() in text.casefold() for text in texts)
