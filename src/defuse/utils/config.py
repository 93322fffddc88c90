"""Typed fields read from YAML, strict, with one sentence for whatever is wrong."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from defuse.utils.errors import UsageError


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


D = TypeVar("D")


def build(kind: type[D], given: object, where: str) -> D:
    """`given` as the dataclass `kind`, as strict as YAML allows: lists are tuples."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        raise UsageError(f"{where}: {given!r} is no mapping of fields; it takes {', '.join(known)}")
    for name in given:
        if name not in known:
            raise UsageError(f"{where}: has no field {name!r}; it takes {', '.join(known)}")
    plain = {name: _number(value) for name, value in given.items()}
    try:
        return TypeAdapter(kind).validate_json(json.dumps(plain), strict=True)
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


def read_fields(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file's fields, with `field=value` overrides such as "noise.std=0.1x" in their places.

    Raises UsageError for what is no mapping, and for an override that names no place.
    """
    try:
        given = _yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give a recipe file") from error
    if not isinstance(given, dict):
        raise UsageError(f"{path}: is no recipe; write fields such as 'model: …', one a line")
    set_fields(given, overrides)
    return given


def set_fields(given: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set the fields that `field=value` overrides name, making the mappings on the way.

    Raises UsageError for an override that names no place.
    """
    for override in overrides:
        _override(given, override)


def _yaml(text: str, where: str) -> Any:  # noqa: ANN401 (anything YAML can hold)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise UsageError(f"{where}: is not valid YAML ({reason}); mend it") from error


def _override(given: dict[str, Any], text: str) -> None:
    """Set one field of a recipe that is still plain data, making the mappings on the way."""
    path, equals, value = text.partition("=")
    *parents, last = path.split(".")
    if not equals or not last:
        raise UsageError(f"{text!r}: is no override; write field=value, such as steps=100")
    node: Any = given
    for part in parents:
        key = _key(node, part, path)
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    node[_key(node, last, path)] = _yaml(value, path)


def _key(node: object, part: str, path: str) -> str | int:
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise UsageError(f"{path}: {part!r} lies in a value that has no fields; name the field")
    if not (part.isdecimal() and int(part) < len(node)):
        raise UsageError(f"{path}: {part!r} is no place in a list of {len(node)}; count from 0")
    return int(part)
