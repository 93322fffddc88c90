"""What a person can put right, and how it is said."""

import warnings


class UsageError(ValueError):
    """Bad input: one sentence that names the field or file, its value and the remedy.

    The command line prints it and exits with code 2; nothing has been written by then.
    """


class Caution(UserWarning):
    """What a user should know of a result that is right as far as it goes."""


def caution(sentence: str) -> None:
    """Warn with one sentence; the command line prints it on a line of its own."""
    warnings.warn(sentence, Caution, stacklevel=3)


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Raise UsageError, a sentence of field, value and remedy, unless `condition` holds."""
    if not condition:
        raise UsageError(f"{field}: {value!r} {remedy}")
