"""The fields that recipes, experiments and attacks can have, found from their dataclasses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from defuse.attacks.registry import ATTACKS
from defuse.experiments.core.experiment_file import DEFENCE_FIELDS, KNOWN, Experiment, Grid
from defuse.experiments.tofu.recipe import TofuRecipe
from defuse.methods import METHODS
from defuse.unlearning.config import Topic
from defuse.unlearning.recipe import Recipe
from defuse.unlearning.recipe_fields import MethodSource, TextSource, TopicSource

Path = tuple[str | int, ...]


def recipe_paths() -> list[Path]:
    """The places of a recipe; a method's own field begins with ("method", its name)."""
    own = [path for path in _paths(Recipe) if path[:2] != ("method", "name")]
    named = [("method", name, *path) for name, kind in METHODS.items() for path in _paths(kind)]
    return [*own, *named, ("method", "name")]


def experiment_paths() -> list[Path]:
    """The places of an experiment file."""
    inner = [(name, each) for name, known in KNOWN.items() for each in sorted(known)]
    attacks = [
        ("attacks", name, *path) for name in ATTACKS for path in _paths(ATTACKS[name].config)
    ]
    defences = [
        ("compare", "defences", 1, name, each)
        for name, known in DEFENCE_FIELDS.items()
        for each in known
    ]
    grid = [("compare", *path) for path in _paths(Grid)]
    unlearn = [("unlearn", *path) for path in _paths(Recipe)]
    texts = [("texts", name, *path) for name in ("forget", "retain") for path in _paths(TextSource)]
    return [*_paths(Experiment), *inner, *attacks, *defences, *grid, *unlearn, *texts]


def tofu_paths() -> list[Path]:
    """The places of a recipe of `defuse tofu`."""
    unlearn = [("unlearn", *path) for path in _paths(Recipe)]
    topic = [("unlearn", "topic", *path) for path in _paths(Topic)]
    return [*_paths(TofuRecipe), *unlearn, *topic, ("defences", "rna", "noise", "std")]


def attack_fields() -> list[str]:
    """Such as "quantise.bits", for every setting of every attack."""
    return [f"{name}.{field}" for name in ATTACKS for field in _hints(ATTACKS[name].config)]


def names_of(kind: type) -> list[str]:
    """The names of a dataclass's fields."""
    return list(_hints(kind))


def _paths(kind: type) -> list[Path]:
    return list(_walk(kind))


def _walk(kind: type) -> Iterator[Path]:
    for name, hint in _hints(kind).items():
        yield (name,)
        for inner, in_a_list in _dataclasses(hint):
            place = (name, 0) if in_a_list else (name,)
            yield from ((*place, *path) for path in _walk(inner))


def _hints(kind: type) -> Mapping[str, Any]:
    """A dataclass's fields in their YAML form, with their annotations."""
    if kind is MethodSource:
        return {"name": str}
    hints = get_type_hints(Topic if kind is TopicSource else kind, include_extras=True)
    found = {each.name: hints[each.name] for each in fields(Topic if kind is TopicSource else kind)}
    texts = {"forget": TextSource, "retain": TextSource} if kind is TopicSource else {}
    return {**found, **texts}


def _dataclasses(hint: Any, in_a_list: bool = False) -> Iterator[tuple[type, bool]]:  # noqa: ANN401
    """The dataclasses that an annotation mentions, and whether they are items of a list."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint, in_a_list
        return
    origin = get_origin(hint)
    if origin in (Annotated, Union, UnionType):
        inner = get_args(hint)[:1] if origin is Annotated else get_args(hint)
        for each in inner:
            yield from _dataclasses(each, in_a_list)
    elif origin in (list, tuple, Sequence):
        for each in get_args(hint):
            yield from _dataclasses(each, True)
