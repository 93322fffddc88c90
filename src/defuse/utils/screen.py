"""Text for the screen, without what would steer a terminal."""

import re

# Control characters of the two ranges of Unicode, and marks that turn the direction of writing.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` with its control characters written out, as `\\x1b`; tabs and line breaks stay."""
    return STEERING.sub(lambda found: ascii(found.group())[1:-1], text)
