"""Text that may come from anywhere: made printable, valid, or short."""

import re
from collections.abc import Mapping

from defuse.utils.errors import UsageError

# Control characters of the two ranges of Unicode, and marks that turn the direction of writing.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST_REASON = 400
LONGEST_SENTENCE = 1000


def printable(text: str) -> str:
    """`text` with its control characters written out, as `\\x1b`; tabs and line breaks stay."""
    return STEERING.sub(lambda found: ascii(found.group())[1:-1], text)


def one_line(text: str) -> str:
    """`text` as one printable line; of a long one, the beginning and the end.

    The end of a refusal is its remedy, and what makes it long is somebody's value.
    """
    line = printable(" ".join(text.splitlines()).replace("\t", " "))
    half = LONGEST_SENTENCE // 2
    return line if len(line) <= LONGEST_SENTENCE else f"{line[:half]} … {line[-half:]}"


def reason_of(error: BaseException) -> str:
    """What an error says, in one line: libraries say the reason in any of several lines."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"


def check_text(value: object, where: str) -> None:
    """Raise UsageError, naming `where`, for text anywhere in `value` that is not valid Unicode."""
    if isinstance(value, str):
        if (found := SURROGATE.search(value)) is not None:
            raise UsageError(
                f"{where}: holds half a character ({found[0]!a}, a lone surrogate), which no "
                "file can hold; correct the text"
            )
    elif isinstance(value, Mapping):
        for name, each in value.items():
            check_text(name, where)
            check_text(each, where)
    elif isinstance(value, list | tuple):
        for each in value:
            check_text(each, where)
