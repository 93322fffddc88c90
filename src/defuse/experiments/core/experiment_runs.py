"""The runs of an experiment file: methods, values, defences and seeds, each a recipe."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

from defuse.experiments.core.experiment_file import DEFENCE_FIELDS, Experiment, Grid
from defuse.experiments.core.scenario import Run
from defuse.methods import METHODS
from defuse.questions import load_tokens
from defuse.recipes import find_recipe
from defuse.unlearning.config import Topic
from defuse.unlearning.recipe import Recipe
from defuse.unlearning.recipe_fields import method_name
from defuse.utils.config import as_mapping, parse, parse_value, read_fields
from defuse.utils.errors import UsageError, require

# A recipe's fields that follow from the experiment's own.
FILLED = ("model", "revision", "output", "topics", "seed", "device", "dtype")
NAMED = re.compile(r"\{([^{}]*)\}")  # a field in a pattern
STEP = re.compile(r"\d{1,10}(/\d{1,10}|\.\d{0,20})?")
TOPIC_FIELDS = {each.name for each in fields(Topic)} - {"name", "forget", "retain"}


@dataclass(frozen=True)
class Defence:
    """Settings by "rna" and "mixing", as far as they are used; `name` in the names of runs."""

    parts: Mapping[str, Mapping[str, Any]]
    name: str | None = None

    @property
    def said(self) -> str:
        said = (" ".join([part, *map(str, own.values())]) for part, own in self.parts.items())
        return " + ".join(said)

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """All settings; with two parts their names stand in front."""
        several = len(self.parts) > 1
        return tuple(
            (f"{part}.{name}" if several else name, value)
            for part, own in self.parts.items()
            for name, value in own.items()
        )


@dataclass(frozen=True)
class Point:
    """A combination of a grid: a method with its own fields, perhaps a retain loss, and so on."""

    method: str
    own: Mapping[str, Any]
    retain: str | None
    tried: Mapping[str, Any]
    defence: Defence
    seed: int

    @property
    def settings(self) -> tuple[str, ...]:
        return tuple(f"{name}={value}" for name, value in self.tried.items())

    @property
    def base_group(self) -> str:
        pair = self.method if self.retain is None else f"{self.method} + {self.retain}"
        return " ".join([pair, *self.settings])

    @property
    def group(self) -> str:
        said = self.defence.said
        return f"{self.base_group}, {said}" if said else self.base_group

    def name(self, pattern: str) -> str:
        """The run's name, which fits a folder."""
        known = {
            **dict(self.defence.settings),
            **self.tried,
            "name": "-".join(filter(None, [self.method, self.retain, *self.settings])),
            "method": self.method,
            "retain": self.retain,
            "defence": f"-{self.defence.name or f'-{self.defence.said}'}" * bool(self.defence.said),
            "seed": self.seed,
        }
        # No str.format: "{seed:999999999}" would be a name of a billion letters.
        name = NAMED.sub(lambda found: str(known.get(found[1], found[0])), pattern)
        remedy = f"is not a pattern; put some of {', '.join(known)} into braces"
        require(not set("{}") & set(NAMED.sub("", pattern)), "names", pattern, remedy)
        require(set(NAMED.findall(pattern)) <= known.keys(), "names", pattern, remedy)
        return "".join(c if c.isalnum() or c in "._=" else "-" for c in name)


def make_runs(
    experiment: Experiment, grids: Iterable[Grid], output: Path, mixing: Sequence[str]
) -> list[Run]:
    """The runs of all grids; what two grids have in common is one run, as the first asks it.

    Raises UsageError for two runs of one name that differ.
    """
    runs: dict[str, Run] = {}
    for grid in grids:
        for point in _points(grid):
            run = _run(experiment, grid, point, output, mixing)
            twin = runs.setdefault(run.name, run)
            if twin.recipe != run.recipe:
                raise UsageError(f"names: {run.name} is the name of two runs; tell them apart")
    return list(runs.values())


def _points(grid: Grid) -> Iterator[Point]:
    methods = grid.methods if isinstance(grid.methods, dict) else dict.fromkeys(grid.methods)
    defences = [each for given in grid.defences for each in _expand(given)]
    for seed in grid.seeds:
        for method, retain in product(methods, grid.retain or [None]):
            for values, defence in product(combinations(grid.values), defences):
                yield Point(method, methods[method] or {}, retain, values, defence, seed)


def parts(given: object) -> dict[str, Any]:
    """A defence as written, such as "none" or {rna: {std: 1x}}, as its parts."""
    parts = {} if given == "none" else given
    if not isinstance(parts, dict) or not set(parts) <= {*DEFENCE_FIELDS, "name"}:
        raise UsageError(
            f"compare.defences: {given!r} is not a defence; write none, {{rna: {{std: 0.3x}}}}, "
            "{mixing: {share: 0.5}}, or both in one"
        )
    return {name: own for name, own in parts.items() if name != "name"}


def _expand(given: object) -> list[Defence]:
    """A defence for every combination of the values that it lists."""
    own_parts = parts(given)
    for name, own in own_parts.items():
        as_mapping(own, DEFENCE_FIELDS[name], f"compare.defences.{name}")
    name = given.get("name") if isinstance(given, dict) else None
    chosen = product(*map(combinations, own_parts.values()))
    return [Defence(dict(zip(own_parts, each, strict=True)), name) for each in chosen]


def combinations(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A mapping for every combination of values; one that is not a list is taken every time."""
    listed = (value if isinstance(value, list) else [value] for value in values.values())
    return [dict(zip(values, each, strict=True)) for each in product(*listed)]


def _run(
    experiment: Experiment, grid: Grid, point: Point, output: Path, mixing: Sequence[str]
) -> Run:
    name = point.name(grid.names)
    recipe = _recipe(experiment, point, output / "models" / name, mixing)
    given = experiment.checkpoints if grid.checkpoints is None else grid.checkpoints
    return Run(
        name=name,
        group=point.group,
        base_group=point.base_group,
        method=point.method,
        retain_loss=recipe.retain.loss,
        defence="+".join(point.defence.parts) or "none",
        seed=point.seed,
        recipe=recipe,
        checkpoints=checkpoints(given, recipe.steps),
        defence_settings=point.defence.settings,
        settings=point.settings,
        questions=grid.questions,
    )


def checkpoints(given: Sequence[int | float | str], steps: int) -> tuple[int, ...]:
    """The steps after which a run is asked, from numbers of steps and shares of them."""
    found = {steps}
    for each in given:
        # Fraction("1e999999999") would take all memory.
        written = str(each)
        try:
            step = Fraction(written) if STEP.fullmatch(written) else Fraction(0)
        except ZeroDivisionError:
            step = Fraction(0)
        whole = math.ceil(steps * step) if step < 1 else step
        is_one = step > 0 and whole.denominator == 1
        require(is_one, "checkpoints", each, "is neither a step nor a share, such as 1/2")
        found.add(int(whole))
    return tuple(sorted(step for step in found if step <= steps))


def _recipe(experiment: Experiment, point: Point, place: Path, mixing: Sequence[str]) -> Recipe:
    """The recipe of one run: fields go to its topic, to its method, or to itself."""
    where = f"compare.methods.{point.method}"
    own = {**experiment.unlearn, **point.own, **point.tried}
    shipped = parse_value(str | None, own.pop("recipe", None), f"{where}.recipe")
    recipe = _shipped_fields(shipped, point)
    topics = parse_value(list[dict[str, Any]], recipe.pop("topics", []), f"{shipped}: topics")
    topic = {k: v for given in topics[:1] for k, v in given.items() if k in TOPIC_FIELDS}
    method = parse_value(dict[str, Any], recipe.pop("method", {}), f"{shipped}: method")
    stated = own.pop("method", {})
    method |= stated if isinstance(stated, dict) else {"name": stated}
    method.setdefault("name", point.method)
    kind = METHODS.get(method_name(method))
    require(kind is not None, where, method["name"], f"is not a method; use {', '.join(METHODS)}")
    method_fields = {each.name for each in fields(kind)} if kind else set()
    retain = recipe.get("retain")
    loss = retain.get("loss") if isinstance(retain, dict) else None
    if point.retain is not None and loss != point.retain:
        own["retain"] = point.retain
    for field_, value in own.items():
        require(field_ not in FILLED, f"{where}.{field_}", value, "follows from other fields")
        if field_ == "retain" and isinstance(value, str):
            recipe["retain"] = {"loss": value}
        elif field_ in TOPIC_FIELDS:
            topic[field_] = value
        elif field_ in method_fields:
            method[field_] = experiment.place(value) if field_ == "refusals" else value
        else:
            recipe[field_] = value
    if "rna" in point.defence.parts:
        recipe["noise"] = dict(point.defence.parts["rna"])
    if "mixing" in point.defence.parts:
        topic |= _mixing(experiment, point.defence.parts["mixing"], place.parents[1], mixing)
    filled = {
        "model": experiment.place(experiment.model),
        "revision": experiment.revision,
        "output": str(place),
        "topics": _topics(experiment, topic),
        "seed": point.seed,
        "device": experiment.device,
        "dtype": experiment.dtype,
    }
    return parse(Recipe, {**recipe, "method": method, **filled}, where)


def _shipped_fields(pattern: str | None, point: Point) -> dict[str, Any]:
    """A recipe's fields without those that the experiment fills in.

    `pattern`: the recipe's name, perhaps with {method} and {retain} in it.
    """
    if pattern is None:
        return {}
    name = pattern.replace("{method}", point.method).replace("{retain}", str(point.retain))
    given = read_fields(find_recipe(name))
    return {field_: v for field_, v in given.items() if field_ == "topics" or field_ not in FILLED}


def _mixing(
    experiment: Experiment, given: Mapping[str, Any], output: Path, tokens: Sequence[str]
) -> dict[str, Any]:
    share = {"mix": given["share"]} if "share" in given else {}
    if "tokens" in given:
        source = experiment.place(str(given["tokens"]))
        load_tokens(source)
        return {"triggers": source, **share}
    if not tokens:
        raise UsageError("compare.defences.mixing: needs tokens; give perturb.forget_tokens")
    return {"triggers": str(output / "texts" / "mixing_tokens.txt"), "mix": 0.5, **share}


def _topics(experiment: Experiment, topic: Mapping[str, Any]) -> list[dict[str, Any]]:
    written = experiment.topics or [{"name": experiment.name, **(experiment.texts or {})}]
    return [
        {**topic, **own, **{k: experiment.corpus(own.get(k)) for k in ("forget", "retain")}}
        for own in written
    ]
