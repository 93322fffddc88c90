"""What a person can put right, and how it is said."""

import warnings
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


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


def check_choices(settings: Any, where: str = "") -> None:  # noqa: ANN401 (any dataclass)
    """Raise UsageError for a field annotated as a choice of words that holds another word.

    Python checks no annotation by itself, and a misspelt choice would run another experiment.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        options = get_args(hints[field.name])
        if get_origin(hints[field.name]) is Literal:
            value = getattr(settings, field.name)
            require(
                value in options,
                f"{where}{field.name}",
                value,
                f"is unknown; use one of {', '.join(map(str, options))}",
            )
