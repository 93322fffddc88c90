"""From `field=a,b,c` to recipes: every combination of values is a point of the grid."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from defuse.experiments.core.experiment_runs import combinations
from defuse.unlearning.recipe import Recipe, load_recipe
from defuse.utils.config import dump
from defuse.utils.errors import UsageError
from defuse.utils.yaml_file import load_yaml

# One reference model, loaded and asked once, and one folder for all that comes out.
SHARED = ("model", "revision", "device", "dtype", "output")
SEED = "seed"
RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
MOST_POINTS = 10_000
# "none" or null for any of these is a recipe without RNA.
NOISE = ("noise", "noise.std", "noise.variance")


@dataclass(frozen=True)
class Point:
    """A recipe, and the fields that the grid varies as they were given."""

    fields: Mapping[str, Any]
    recipe: Recipe

    @property
    def values(self) -> dict[str, Any]:
        """The same fields with what is in the recipe: 5e-5 is a number there."""
        recipe = dump(self.recipe)
        return {field: _look_up(recipe, field) for field in self.fields}

    @property
    def label(self) -> str:
        """Such as "noise.std=0.3x seed=1"."""
        return _label(self.fields)

    @property
    def setting(self) -> str:
        """The label without the seed: equal for points that are repetitions of each other."""
        return _label({field: value for field, value in self.fields.items() if field != SEED})


def make_grid(path: Path, texts: Sequence[str]) -> list[Point]:
    """The points of a recipe file and `field=value,value` texts.

    Values are YAML, so commas within brackets and quotes do not part them. `0..4` stands for 0, 1,
    2, 3, 4; `noise.std=none` is without RNA; null clears any field that may be left out. A field
    with one value is a plain override. The last field's values come next to each other. Raises
    UsageError for what is no recipe, naming the point.
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        field, values = _axis(text)
        if field in axes:
            raise UsageError(f"{field}: is given twice; give all its values at once")
        axes[field] = values
    varied = [field for field, values in axes.items() if len(values) > 1]
    if (count := math.prod(map(len, axes.values()))) > MOST_POINTS:
        raise UsageError(f"{', '.join(varied)}: make {count} runs; name at most {MOST_POINTS}")
    points = []
    for given in combinations(axes):
        fields = {field: given[field] for field in varied}
        with at_point(fields):
            recipe = load_recipe(path, [_override(*each) for each in given.items()])
        points.append(Point(fields, recipe))
    return points


@contextmanager
def at_point(fields: Mapping[str, Any]) -> Iterator[None]:
    """Put the point in front of an error that arises in the block."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{_label(fields)}: {error}" if fields else str(error)) from error


def _axis(text: str) -> tuple[str, list[Any]]:
    field, equals, values = text.partition("=")
    if not (field and equals):
        raise UsageError(f"{text!r}: is no part of a grid; write field=value,value or field=0..4")
    try:
        parsed = load_yaml(f"[{values}]", field)
    except UsageError as error:
        if error.__cause__ is None:  # it is YAML, but read otherwise than written
            raise
        raise UsageError(
            f"{field}: {values!r} is no list of values; part them by commas, and quote texts with "
            "commas or brackets in them"
        ) from error
    found = [each for value in parsed for each in _expand(field, value)]
    if not found:
        raise UsageError(f"{field}: has no value; write {field}=value,value")
    if field.split(".")[0] in SHARED and len(found) > 1:
        raise UsageError(
            f"{field}: cannot vary within a sweep, which has one base model; make a sweep for each"
        )
    return field, found


def _expand(field: str, value: object) -> Sequence[Any]:
    """A value as a list: the whole numbers of a range, else itself."""
    ends = RANGE.fullmatch(value) if isinstance(value, str) else None
    if ends is None:
        return [value]
    first, last = int(ends[1]), int(ends[2])
    if not 0 <= last - first < MOST_POINTS:
        raise UsageError(
            f"{field}: {value} is no range; write 0..4 for 0, 1, 2, 3, 4 (at most {MOST_POINTS})"
        )
    return range(first, last + 1)


def _look_up(node: Any, field: str) -> Any:  # noqa: ANN401 (anything a recipe holds)
    for part in field.split("."):
        node = node[int(part)] if isinstance(node, list) else (node or {}).get(part)
    return node


def _override(field: str, value: object) -> str:
    if field in NOISE and value in ("none", None):
        return "noise=null"
    return f"{field}={_flow(value)}"


def _label(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{field}={_flow(value)}" for field, value in fields.items())


def _flow(value: object) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").removesuffix("\n")
