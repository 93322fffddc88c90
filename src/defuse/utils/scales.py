"""Quantities given as a number or as a multiple of a measured one: 0.03 or "0.1x"."""

import math
import re
from typing import Annotated

from pydantic import AfterValidator

from defuse.utils.errors import UsageError

MULTIPLE = re.compile(r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)x")


def _factor(value: float | str) -> float | None:
    """The factor of "0.1x", or None for a plain number. Raises ValueError for anything else."""
    if isinstance(value, str):
        match = MULTIPLE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is neither a number nor a multiple; write 0.03 or 0.1x")
        return float(match[1])
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value} must be a finite number that is not negative")
    return None


def _checked(value: float | str) -> float | str:
    _factor(value)
    return value


Multiple = Annotated[float | str, AfterValidator(_checked)]


def multiple(value: float | str, field: str) -> float | None:
    """The factor of "0.1x", or None for a plain number.

    Raises UsageError (naming `field`) for anything that is neither, negative or not finite.
    """
    try:
        return _factor(value)
    except ValueError as error:
        raise UsageError(f"{field}: {error}") from error


def resolve(value: float | str, unit: float, field: str) -> float:
    """`value` itself, or its factor times `unit`."""
    factor = multiple(value, field)
    return float(value) if factor is None else factor * unit
