"""Quantities given outright or as a multiple of what the model shows: 0.03 or "0.1x"."""

import math
import re

from defuse.utils.errors import UsageError

MULTIPLE = re.compile(r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)x")


def multiple(value: float | str, field: str) -> float | None:
    """The factor of "0.1x", or None for a plain number.

    Raises UsageError (naming `field`) for anything that is neither, negative or not finite.
    """
    if isinstance(value, str):
        match = MULTIPLE.fullmatch(value.strip())
        if match is None:
            raise UsageError(
                f"{field}: {value!r} is neither a number nor a multiple; write 0.03 or 0.1x"
            )
        return float(match[1])
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{field}: {value} must be a finite number that is not negative")
    return None


def plain_number(value: object, field: str) -> None:
    """Raise UsageError unless `value` is None or a finite number that is not negative."""
    if isinstance(value, str):
        raise UsageError(f"{field}: {value!r} must be a plain number, such as 0.5")
    if isinstance(value, int | float):
        multiple(value, field)


def resolve(value: float | str, unit: float, field: str) -> float:
    """`value` itself, or its factor times `unit`."""
    factor = multiple(value, field)
    return float(value) if factor is None else factor * unit
