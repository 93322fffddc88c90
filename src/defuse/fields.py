"""Typed fields read from YAML, strict, with one sentence for whatever is wrong."""

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from defuse.errors import UsageError


def _number(value: object) -> object:
    """YAML 1.1 takes 5e-5 for text, since it has no point; here it is a number."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Multiple = Annotated[float | str, BeforeValidator(_number)]
Whole = Annotated[int, Field(gt=0)]


class Fields(BaseModel):
    """No field unknown, no type guessed, nothing changed afterwards."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: object) -> object:
        known = cls.model_fields
        for name in given if isinstance(given, Mapping) else ():
            if name not in known:
                raise ValueError(f"has no field {name!r}; it takes {', '.join(known)}")
        return given


F = TypeVar("F", bound=Fields)


def parse(kind: type[F], given: object, where: str) -> F:
    """`given` as `kind`. Raises UsageError with the first complaint, `where` before its field."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise UsageError(_sentence(error, where)) from error


def _sentence(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UsageError):
        return str(cause)  # names its field already
    # Where several types will do, pydantic's path also names the type it tried.
    path = [str(part) for part in first["loc"] if str(part).isalnum() or str(part).isidentifier()]
    field = ".".join([where, *(part for part in path if part not in ("float", "str"))]).strip(".")
    field = f"{field}: " if field else "the recipe "
    if cause is not None:
        return f"{field}{cause}"
    if first["type"] == "model_type":
        return f"{field}{first['input']!r} is no mapping of fields; write them as {{name: value}}"
    if first["type"] == "missing":
        return f"{field}is missing; add it"
    message = first["msg"]
    return f"{field}{first['input']!r} is refused ({message[0].lower()}{message[1:]})"
