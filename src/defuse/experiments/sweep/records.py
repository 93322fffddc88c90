"""What a sweep keeps in its folder: the base model's answers, and a record of every run."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from defuse.experiments.sweep.grid import Point, recipe_essence
from defuse.unlearning.recipe_fields import TopicSource
from defuse.utils.config import dump
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A point of the grid with the name of its record.

    `name` is a hash of the recipe, wherever its output is put, and of the texts that it reads. The
    recipe's output is where a checkpoint goes, if it is kept.
    """

    name: str
    point: Point


def name_runs(points: Iterable[Point], folder: Path) -> list[Run]:
    """Read the texts of every point, and give each run its name and its place in `folder`."""
    digests: dict[TopicSource, str] = {}
    runs = []
    for point in points:
        recipe = point.recipe
        for topic in recipe.topics:
            if topic not in digests:
                built = topic.build()
                digests[topic] = _digest([built.forget, built.retain, built.triggers])
        texts = [digests[topic] for topic in recipe.topics]
        refusals = getattr(recipe.method.build(), "refusals", ())
        name = _digest([recipe_essence(recipe), texts, refusals])[:12]
        placed = replace(recipe, output=str(folder / "models" / name))
        runs.append(Run(name, replace(point, recipe=placed)))
    return runs


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def base_file(folder: Path) -> Path:
    """The base model's answers, and to what."""
    return folder / "base.json"


def record_file(folder: Path, run: Run) -> Path:
    """A run's record."""
    return folder / "runs" / f"{run.name}.json"


def read_base(folder: Path, digest: str) -> Record | None:
    """What is in `base_file`. Raises UsageError if other questions than `digest`'s were asked."""
    path = base_file(folder)
    if not path.exists():
        return None
    base = _read(path)
    if base.get("exam") != digest:
        raise UsageError(f"out: {folder} holds answers to other questions; name a new folder")
    return base


def read_record(folder: Path, run: Run) -> Record | None:
    """A run's record, failed or not; None if there is none."""
    path = record_file(folder, run)
    return _read(path) if path.exists() else None


def write_record(folder: Path, run: Run, found: Record) -> Record:
    """Keep what was found about a run, with its point in front; returns the whole."""
    point = {
        "run": run.name,
        "fields": run.point.values,
        "seed": run.point.recipe.seed,
        "recipe": dump(run.point.recipe),
    }
    record = {**point, **found}
    write_json(record_file(folder, run), record)
    return record


def all_records(folder: Path) -> Iterator[Record]:
    """Every run's record, of this grid or of another."""
    return (_read(path) for path in (folder / "runs").glob("*.json"))


def _read(path: Path) -> Record:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is no record of a sweep ({error}); remove it") from error
