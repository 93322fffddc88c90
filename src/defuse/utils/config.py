"""Frozen dataclasses read from YAML: strict types, and one sentence for whatever is wrong.

A dataclass annotates its fields with the types below, and has no second class for YAML. `parse`
reads it from a mapping; `check_fields`, called in `__post_init__`, refuses the same values when it
is made in Python. A class whose YAML form differs from its fields has methods `from_fields(given,
where)` and `to_fields()`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pydantic
from pydantic import TypeAdapter, ValidationError

from defuse.utils.errors import UsageError
from defuse.utils.yaml_file import MOST_BYTES, TOO_LARGE, load_yaml

MOST = 10**9  # no count of anything here is larger
Count = Annotated[int, pydantic.Field(gt=0, le=MOST)]
Natural = Annotated[int, pydantic.Field(ge=0, le=MOST)]
Length = Annotated[int, pydantic.Field(gt=1)]  # in tokens: one to read and one to predict
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]

LONGEST_VALUE = 100  # characters of a value in a message
UNCHECKED = "unchecked"  # in an annotation: `__post_init__` checks the value by itself

D = TypeVar("D")


def parse(kind: type[D], given: object, where: str = "") -> D:
    """`given` as the dataclass `kind`; `where` is put before the names of its fields.

    Raises UsageError for the first value that is wrong.
    """
    own = getattr(kind, "from_fields", None)
    return parse_fields(kind, given, where) if own is None else own(given, where)


def parse_fields(kind: type[D], given: object, where: str = "") -> D:
    """`parse` by the fields' own types."""
    known = _fields(kind)
    given = as_mapping(given, [field.name for field, _ in known.values()], where)
    values = {}
    for name, (field, hint) in known.items():
        if name in given:
            values[name] = _read(hint, given[name], dotted(where, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{dotted(where, name)}: is missing; add it")
    return kind(**values)


def as_mapping(given: object, known: Iterable[str], where: str) -> Mapping[str, Any]:
    """`given` as a mapping of no other than the `known` fields. Raises UsageError if it is none."""
    if not isinstance(given, Mapping):
        raise UsageError(
            f"{_subject(where)}{given!r} is no mapping of fields; write them as {{name: value}}"
        )
    known = list(known)
    for name in given:
        if name not in known:
            raise UsageError(f"{_subject(where)}has no field {name!r}; it takes {', '.join(known)}")
    return given


def parse_value(hint: Any, value: object, where: str) -> Any:  # noqa: ANN401 (whatever `hint` is)
    """`value` as the type `hint`, which holds no dataclass. Raises UsageError if it is none."""
    return _validated(TypeAdapter(hint), hint, _as_numbers(hint, value), where)


def check_fields(settings: Any, where: str = "") -> None:  # noqa: ANN401 (any dataclass)
    """Raise UsageError for the first field whose value its annotation does not allow."""
    for name, (_, hint) in _fields(type(settings)).items():
        value, classes = getattr(settings, name), _dataclasses(hint)
        if _is_skipped(hint):
            continue
        if not {*_members(hint)} <= {*classes, NoneType}:
            _check(_adapter(type(settings), name), value, dotted(where, name))
        elif not isinstance(value, tuple(_members(hint))):
            names = " or ".join(kind.__name__ for kind in classes)
            raise UsageError(f"{dotted(where, name)}: {_short(value)} is no {names}; give one")


def dump(settings: Any) -> dict[str, Any]:  # noqa: ANN401 (any dataclass)
    """The fields of a dataclass as YAML and JSON hold them; `parse` reads them back."""
    own = getattr(settings, "to_fields", None)
    if own is not None:
        return own()
    return {field.name: _plain(getattr(settings, field.name)) for field in fields(settings)}


def without_none(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """`value` without the fields of mappings that are None."""
    if isinstance(value, Mapping):
        return {name: without_none(each) for name, each in value.items() if each is not None}
    return [without_none(each) for each in value] if isinstance(value, list) else value


def dotted(where: str, name: str | int) -> str:
    """The path of the field `name` of `where`."""
    return f"{where}.{name}" if where else str(name)


def _plain(value: Any) -> Any:  # noqa: ANN401 (any field)
    if is_dataclass(value):
        return dump(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


@cache
def _fields(kind: type) -> Mapping[str, tuple[Field[Any], Any]]:
    """The fields that a dataclass is made with, and their annotations."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: (f, hints[f.name]) for f in fields(kind) if f.init}


@cache
def _adapter(kind: type, name: str) -> TypeAdapter[Any]:
    hint = _in_python(_fields(kind)[name][1])
    return TypeAdapter(hint, config=pydantic.ConfigDict(arbitrary_types_allowed=True))


def _in_python(hint: Any) -> Any:  # noqa: ANN401
    """The annotation for values of Python: dataclasses are objects, and lists serve as tuples."""
    inner, origin = get_args(hint), get_origin(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return pydantic.InstanceOf[hint]
    if origin is Annotated:
        return Annotated[_in_python(inner[0]), *inner[1:]]
    if origin in (Union, UnionType):
        return Union[tuple(map(_in_python, inner))]  # noqa: UP007 (of any number)
    if origin is tuple and inner[-1] is ...:
        return Sequence[_in_python(inner[0])]
    if origin in (list, dict, Sequence, Mapping):
        return GenericAlias(origin, tuple(map(_in_python, inner)))
    return hint


def _read(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    """A field's value; dataclasses within it are parsed by their own rules."""
    if _is_skipped(hint) or (value is None and NoneType in _members(hint)):
        return value
    for member in _members(hint):
        if isinstance(member, type) and is_dataclass(member):
            return parse(member, value, where)
        items = get_args(member)[:1] if get_origin(member) in (list, tuple, Sequence) else ()
        if items and _dataclasses(items[0]) and isinstance(value, list):
            return tuple(_read(items[0], v, dotted(where, i)) for i, v in enumerate(value))
    return parse_value(hint, value, where)


def _members(hint: Any) -> list[Any]:  # noqa: ANN401
    """The types that a union or an annotated type allows."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [member for each in get_args(hint) for member in _members(each)]
    return [hint]


def _dataclasses(hint: Any) -> list[type]:  # noqa: ANN401
    return [m for m in _members(hint) if isinstance(m, type) and is_dataclass(m)]


def _is_skipped(hint: Any) -> bool:  # noqa: ANN401
    return get_origin(hint) is Annotated and UNCHECKED in get_args(hint)[1:]


def _mentions(hint: Any, wanted: type) -> bool:  # noqa: ANN401
    inner = (each for member in _members(hint) for each in get_args(member))
    return any(get_origin(m) is wanted or m is wanted for m in _members(hint)) or any(
        _mentions(each, wanted) for each in inner
    )


def _as_numbers(hint: Any, value: object) -> object:  # noqa: ANN401
    """YAML 1.1 reads 5e-5 as text, because it has no point; here it is a number."""
    if not _mentions(hint, float):
        return value
    if isinstance(value, list):
        return [_as_numbers(hint, each) for each in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check(adapter: TypeAdapter[Any], value: object, where: str) -> None:
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        raise UsageError(_sentence(error, where)) from error


def _validated(adapter: TypeAdapter[Any], hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    try:
        if isinstance(value, list | dict) and _mentions(hint, tuple):
            # Only JSON has one sort of list; in Python a strict tuple is no list.
            return adapter.validate_json(json.dumps(value), strict=True)
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        raise UsageError(_sentence(error, where)) from error


def _sentence(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    # Where several types will do, pydantic's path also names the type it tried.
    path = [str(part) for part in first["loc"] if str(part).isalnum() or str(part).isidentifier()]
    place = ".".join([where, *(part for part in path if part not in ("float", "str", "int"))])
    cause = first.get("ctx", {}).get("error")
    if cause is not None:
        return f"{place}: {cause}"
    message = first["msg"].replace("an instance of Sequence", "a list")
    return f"{place}: {_short(first['input'])} is refused ({message[0].lower()}{message[1:]})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _subject(where: str) -> str:
    return f"{where}: " if where else "the recipe "


def read_fields(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file's fields, with `field=value` overrides such as "noise.std=0.1x" applied.

    Raises UsageError for what is no mapping, and for an override whose place does not exist.
    """
    try:
        if path.stat().st_size > MOST_BYTES:  # before it is read: it may be a model's file
            raise UsageError(f"{path}: {TOO_LARGE}")
        given = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give a recipe file") from error
    if not isinstance(given, dict):
        raise UsageError(f"{path}: is no recipe; write fields such as 'model: …', one a line")
    set_fields(given, overrides)
    return given


def set_fields(given: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set the fields that `field=value` overrides name; mappings on the way are made.

    Raises UsageError for an override whose place does not exist.
    """
    for override in overrides:
        _override(given, override)


def _override(given: dict[str, Any], text: str) -> None:
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
    node[_key(node, last, path)] = load_yaml(value, path)


def _key(node: object, part: str, path: str) -> str | int:
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise UsageError(f"{path}: {part!r} is inside a value that has no fields; name the field")
    if not (part.isdecimal() and int(part) < len(node)):
        raise UsageError(f"{path}: {part!r} is no place in a list of {len(node)}; count from 0")
    return int(part)
