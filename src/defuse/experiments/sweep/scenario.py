"""The scenario of a sweep: each point of a grid of recipes is a run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from defuse.experiments.core import experiment_scenario
from defuse.experiments.core.answers import AnswerTable
from defuse.experiments.core.experiment_file import Experiment
from defuse.experiments.core.scenario import Run, Scenario
from defuse.experiments.sweep.figure import FIGURE_TEXT, draw
from defuse.experiments.sweep.grid import Point, at_point, make_grid
from defuse.experiments.sweep.table import Format, figures, write_table
from defuse.experiments.sweep.version_0_1_0 import adopt
from defuse.models.fsdp import check_sharding
from defuse.unlearning.recipe_identity import TextDigests, recipe_essence
from defuse.unlearning.run import check
from defuse.utils.config import check_fields, dump
from defuse.utils.distributed import ALONE
from defuse.utils.errors import UsageError
from defuse.utils.identity import digest

UNLEARNED = "unlearned"  # the label of a grid's only point


@dataclass(frozen=True)
class Options:
    """A recipe and a grid of its fields, with texts such as "seed=0..4" (`sweep.grid`).

    `asked`: the fields of an experiment file that say what is asked, such as `questions`, `perturb`
    and `score`. `output`: None is the recipe's output with "-sweep" behind it. `keep`: write
    checkpoints, too. `form`: of the table of runs. `command`: makes the sweep again.
    """

    recipe: Path
    grid: tuple[str, ...]
    asked: Mapping[str, Any]
    output: Path | None = None
    keep: bool = False
    form: Format = "jsonl"
    command: str = "defuse sweep"

    def __post_init__(self) -> None:
        check_fields(self)


def make_scenario(options: Options) -> Scenario:
    """Read recipes, texts and questions, and check a point of each setting.

    Raises UsageError, naming the point, for what cannot run.
    """
    points = make_grid(options.recipe, options.grid)
    recipe = points[0].recipe
    folder = options.output or Path(f"{recipe.output}-sweep")
    for point in {point.setting: point for point in reversed(points)}.values():
        with at_point(point.fields):
            check(point.recipe)
            if point.recipe.shard:
                check_sharding(ALONE, point.recipe.batch_size)
    named = dict(_named(points))
    experiment = Experiment(
        name=f"sweep of {options.recipe.stem}",
        output=str(folder),
        model=recipe.model,
        revision=recipe.revision,
        device=recipe.device,
        dtype=recipe.dtype,
        compare={},
        keep_models=options.keep,
        **options.asked,
    )
    runs = _neighbours([_run(name, point, folder) for name, point in named.items()])
    adopt(folder, runs)
    scenario = experiment_scenario.make_scenario(experiment, options.command, runs=runs)
    values = {name: point.values for name, point in named.items()}
    return replace(
        scenario,
        layout=replace(scenario.layout, stem="sweep", draw=draw, figure_text=FIGURE_TEXT),
        about={**options.asked, "points": values},
        describe=partial(_describe, values),
        listing=partial(write_table, options.form),
    )


def _named(points: Sequence[Point]) -> Iterator[tuple[str, Point]]:
    """Each point with a name from what decides its results, wherever its files are.

    Raises UsageError for two points with the same results.
    """
    digests = TextDigests()
    seen: dict[str, Point] = {}
    for point in points:
        name = digest([recipe_essence(point.recipe), digests.of(point.recipe)])[:12]
        twin = seen.setdefault(name, point)
        if twin is not point:
            raise UsageError(
                f"{point.label}: is the same recipe as {twin.label}; leave one of them out"
            )
        yield name, point


def _run(name: str, point: Point, folder: Path) -> Run:
    recipe, group = point.recipe, point.setting or UNLEARNED
    return Run(
        name=name,
        group=group,
        base_group=group,
        method=recipe.method.name,
        retain_loss=recipe.retain.loss,
        defence="none" if recipe.noise is None else "rna",
        seed=recipe.seed,
        recipe=replace(recipe, output=str(folder / "models" / name)),
        checkpoints=(recipe.steps,),
        label=point.label or UNLEARNED,
    )


def _neighbours(runs: Sequence[Run]) -> list[Run]:
    """The runs in an order in which those that share what the frozen blocks compute follow."""
    parts: dict[str, list[Run]] = {}
    for run in runs:
        recipe = run.recipe
        strengths = {"coefficient": None, "scale": None, "weight": None}
        texts = [{**dump(topic), **strengths} for topic in recipe.topics]
        shared = json.dumps([texts, recipe.layer, recipe.train.layers, recipe.batch_size])
        parts.setdefault(shared, []).append(run)
    return [run for part in parts.values() for run in part]


def _describe(
    values: Mapping[str, Mapping[str, Any]],
    run: Run,
    answers: AnswerTable | None,
    reference: AnswerTable,
) -> dict[str, Any]:
    """More for a run's record: its point, and its figures unless it failed."""
    return {
        "fields": values[run.name],
        "seed": run.seed,
        "recipe": dump(run.recipe),
        "figures": {} if answers is None else figures(answers, reference),
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
