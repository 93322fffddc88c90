"""Every dataclass that a user makes refuses wrong values in each field, when it is made."""

import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import defuse
from defuse import RMU, Question, UsageError
from defuse.attacks.registry import ATTACKS
from defuse.methods import METHODS, RETAIN_LOSSES, PreferenceMethod, RepresentationMethod
from tests.conftest import build_llama, build_tokenizer

# What a verb is asked for has one of these names, in whatever module.
ASKED = ("Request", "Options", "Effort")
# The library makes these; its users read them.
RESULTS = {
    *("Cost", "Condition", "Curves", "Effect", "Example", "Figures", "Line", "Result"),
    *("Evaluation", "MCAnswer", "Contrast", "VariantSummary", "Vulnerability"),
    *("Interval", "Paired", "StepRecord", "Steering"),
}
QUESTION = Question("1", "x", ("y", "z"), 0)
# Valid values of types that have no plain one.
VALUES: dict[object, Callable[[], object]] = {
    RepresentationMethod: RMU,
    PreferenceMethod: RMU,
    PreTrainedModel: build_llama,
    PreTrainedTokenizerBase: build_tokenizer,
    Path: lambda: Path("x"),
    str: lambda: "x",
    int: lambda: 2,
    float: lambda: 0.5,
    bool: lambda: True,
    NoneType: lambda: None,
}


def user_made() -> dict[str, type]:
    """All dataclasses that users make, by module and name, with those in their fields."""
    todo = [*METHODS.values(), *RETAIN_LOSSES.values(), *(spec.config for spec in ATTACKS.values())]
    for module in pkgutil.walk_packages(defuse.__path__, "defuse."):
        if module.name != "defuse.__main__":
            todo += _offered(import_module(module.name))
    todo += _offered(defuse)
    found: dict[str, type] = {}
    while todo:
        kind = todo.pop()
        key = f"{kind.__module__}.{kind.__name__}"
        if kind.__name__ not in RESULTS and key not in found:
            found[key] = kind
            todo += [inner for hint in hints(kind).values() for inner in _inner(hint)]
    return dict(sorted(found.items()))


def _offered(module: Any) -> Iterator[type]:
    exported = [getattr(module, name) for name in getattr(module, "__all__", ())]
    asked = [getattr(module, name, None) for name in ASKED]
    own = [kind for kind in asked if getattr(kind, "__module__", "") == module.__name__]
    return (each for each in (*exported, *own) if isinstance(each, type) and is_dataclass(each))


def _inner(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for each in get_args(hint):
        yield from _inner(each)


def hints(kind: type) -> dict[str, Any]:
    """The annotations of the fields that a dataclass is made with."""
    found = get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in fields(kind) if field.init}


def members(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, UnionType):
        return [member for each in get_args(hint) for member in members(each)]
    if get_origin(hint) is Annotated:
        return members(get_args(hint)[0])
    return [hint]


def bounds(hint: Any) -> list[Any]:
    """The metadata of the annotation's fields, such as Ge(0)."""
    if get_origin(hint) is Annotated:
        return [m for f in get_args(hint)[1:] for m in getattr(f, "metadata", ()) or [f]]
    if get_origin(hint) in (Union, UnionType):
        return [bound for each in get_args(hint) for bound in bounds(each)]
    return []


def valid(hint: Any) -> object:
    """A value that the annotation allows."""
    first = members(hint)[0]
    if first in VALUES:
        return VALUES[first]()
    origin = get_origin(first)
    if origin is Literal:
        return get_args(first)[0]
    if origin in (dict, Mapping):
        return {}
    if origin in (list, tuple, Sequence):
        return []
    assert is_dataclass(first), f"say in VALUES what a valid {first} is"
    return make(first)  # type: ignore[arg-type] (a class)


def make(kind: type, **given: object) -> object:
    """An object of `kind` with valid values in the fields that it requires."""
    needed = {
        field.name: hints(kind)[field.name]
        for field in fields(kind)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    }
    plain = {name: valid(hint) for name, hint in needed.items() if name not in given}
    return kind(**plain | EXAMPLES.get(kind.__name__, {}) | given)


# Valid fields where an object of plain values would make no sense.
EXAMPLES: dict[str, dict[str, object]] = {
    "GaussianNoise": {"std": 0.1},
    "RetainSource": {"loss": "hidden_mse"},
    "Question": {"choices": ("x", "y"), "answer": 0},
    "Perturbation": {"tokens": ("x",)},
    "Experiment": {"questions": {"forget": "x", "retain": "y"}},
    "AttackData": {name: [QUESTION] for name in ("forget", "retain")},
}


def wrong(hint: Any) -> Iterator[object]:
    """Values that the annotation does not allow."""
    kinds = members(hint)
    if Any in kinds or object in kinds:
        return
    yield from (object(), b"bytes", RMU, {1, 2}, 1j)
    yield from () if NoneType in kinds else (None,)
    plain = {each for each in kinds if isinstance(each, type)}
    literal = {value for each in kinds if get_origin(each) is Literal for value in get_args(each)}
    if not plain & {str} and "a string" not in literal:
        yield "a string"
    yield from () if plain & {int, float, bool} else (3, -0.5, True)
    yield from () if bool in plain else (True,)
    if not any(get_origin(each) in (list, tuple, Sequence) for each in kinds):
        yield from ([1], ("a", "b"))
    else:
        yield from ([object()], [b"bytes"]) if not _holds_any(kinds) else ()
    if plain & {int, float}:
        yield from (math.nan, math.inf, -math.inf)
        limits = bounds(hint)
        if any(getattr(limit, name, -1) >= 0 for limit in limits for name in ("ge", "gt")):
            yield from (-1, -0.5)
        if any(getattr(limit, "le", math.inf) == 1 for limit in limits):
            yield 1.5
        yield from () if float in plain else (1.5,)


def _holds_any(kinds: Sequence[Any]) -> bool:
    return any(Any in get_args(each) for each in kinds)


def faults(kind: type, name: str) -> Iterator[str]:
    """What is wrong with the refusals of wrong values in a field."""
    for value in wrong(hints(kind)[name]):
        try:
            make(kind, **{name: value})
        except UsageError as error:
            if name not in str(error):
                yield f"{name}={value!r}: {error}"
        except Exception as error:
            yield f"{name}={value!r}: {error!r}"
        else:
            yield f"{name}={value!r} is taken"


def test_wrong_values_are_refused_by_the_fields_name_when_the_object_is_made() -> None:
    found = [
        f"{key}: {fault}"
        for key, kind in user_made().items()
        for name in hints(kind)
        for fault in faults(kind, name)
    ]
    assert not found, "\n".join(found)


def test_the_walk_finds_what_users_make() -> None:
    names = {kind.__name__ for kind in user_made().values()}
    wanted = {"Topic", "Training", "Unlearning", "LoRA", "GaussianNoise", "Optimiser", "RMU", "DPO"}
    wanted |= {"FineTuning", "GCG", "Settings", "Question", "QuestionAnswer", "Request", "Recipe"}
    assert wanted <= names
    assert FieldInfo in {type(m) for m in get_args(hints(defuse.Training)["steps"])}
