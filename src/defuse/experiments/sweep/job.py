"""`defuse sweep`: a grid of recipes on the experiment engine, with one table and a Pareto plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from defuse.evaluate.sources import Asking, TokenFiles, build_perturbation, load_part
from defuse.experiments.core.answers import (
    FORGET_SET,
    RETAIN_SET,
    AnswerTable,
    from_old_json,
    to_old_json,
)
from defuse.experiments.core.metrics import make_group
from defuse.experiments.core.questions import MCQuestions, make_probes
from defuse.experiments.core.ray_cluster import Resources, check_resources
from defuse.experiments.core.run import (
    REFERENCE,
    ExperimentContext,
    last_losses,
    load_answers,
    other_answers,
)
from defuse.experiments.core.runner import Runner, RunnerName, run_all
from defuse.experiments.core.scenario import Layout, ModelSource, Run, Scenario, TextDigests, digest
from defuse.experiments.sweep.figure import draw
from defuse.experiments.sweep.grid import SEED, Point, at_point, make_grid, recipe_identity
from defuse.experiments.sweep.summary import as_data, make_groups, markdown, screen_table
from defuse.experiments.sweep.table import Format, Table
from defuse.models.fsdp import check_sharding
from defuse.questions import Position, Score
from defuse.report.plots import save
from defuse.unlearning.run import check
from defuse.utils.config import dump
from defuse.utils.distributed import ALONE
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held, write_json, write_text
from defuse.utils.progress import SILENT, Progress

UNLEARNED = "unlearned"  # of a grid with a single setting


@dataclass(frozen=True)
class Sources:
    """Where questions and tokens come from and how they are asked, as `defuse evaluate` has it."""

    forget: str
    retain: str
    forget_subject: str | None = None
    retain_subject: str | None = None
    score: Score = "letters"
    few_shot: int = 0
    dev: str | None = None
    limit: int | None = None
    tokens: TokenFiles | None = None
    position: Position = "choice"
    sentence: str | None = None

    def questions(self, model: str) -> MCQuestions:
        """Read everything; the tokenizer of `model` matches control tokens."""
        asking = Asking(self.few_shot, self.limit, self.score)
        sets = {
            FORGET_SET: load_part(self.forget, self.forget_subject, self.dev, asking),
            RETAIN_SET: load_part(self.retain, self.retain_subject, self.dev, asking),
        }
        perturbations = []
        if self.tokens is not None:
            how = (self.tokens, self.position, self.sentence, model, asking.seed)
            perturbations.append(build_perturbation(*how))
        questions = {name: part.questions for name, part in sets.items()}
        settings = {name: part.settings for name, part in sets.items()}
        probes = make_probes(questions, settings, perturbations)
        return MCQuestions(probes, probes)


@dataclass(frozen=True)
class Request:
    """What is wanted of a sweep.

    `grid`: texts such as "seed=0..4" (`sweep.grid`). `out`: None is the recipe's output with
    "-sweep" behind it. `keep`: write checkpoints, too. `plan`: only say what would run; `report`:
    only report what is finished.
    """

    recipe: Path
    grid: tuple[str, ...]
    sources: Sources
    out: Path | None = None
    keep: bool = False
    retry_failed: bool = False
    plan: bool = False
    report: bool = False
    form: Format = "jsonl"
    runner: RunnerName = "ray"
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class Plan:
    """A request with everything read and checked: the scenario, and each run's point."""

    request: Request
    scenario: Scenario
    points: Mapping[str, Point]

    @cached_property
    def context(self) -> ExperimentContext:
        return ExperimentContext(self.scenario)

    def record(self, run: Run) -> dict[str, Any] | None:
        """A run's record, failed or not."""
        path = self.scenario.folder / "runs" / f"{run.name}.json"
        return _read(path) if path.exists() else None

    def answers(self, run: Run) -> AnswerTable | None:
        """A run's answers; those of version 0.1.0 are in its record."""
        found = load_answers(self.context, run)
        if found:
            return found[run.steps]
        record = self.record(run) or {}
        return from_old_json(record["answers"], {}) if "answers" in record else None

    def left(self) -> list[Run]:
        """The runs without a record, and failed ones if they are to be retried."""
        return [run for run in self.scenario.runs if not self._is_done(run)]

    def _is_done(self, run: Run) -> bool:
        record = self.record(run)
        if record is None:
            return False
        if "error" in record:
            return not self.request.retry_failed
        return not self.request.keep or Path(run.recipe.output).is_dir()


def run_sweep(request: Request, console: Console, progress: Progress = SILENT) -> int:
    """Do what is left of the sweep and report it; returns how many of its runs have failed.

    Raises UsageError for whatever can be refused before anything runs.
    """
    plan = check_sweep(request)
    folder = plan.scenario.folder
    todo = [] if request.report else plan.left()
    console.print(f"{len(todo)} of {len(plan.scenario.runs)} runs to do, in {folder}")
    if request.plan:
        for run in plan.scenario.runs:
            line = f"{run.name}  {plan.points[run.name].label}"
            console.print(line, highlight=False, markup=False)
        return 0
    with held(folder / ".lock", "out", f"the sweep in {folder}"):
        if todo:
            _carry_out(plan, todo, console, progress)
        return report(plan, console)


def check_sweep(request: Request) -> Plan:
    """Read recipes, texts and questions, and check one point of all that differ in their seed.

    Raises UsageError, naming the point, for what cannot run.
    """
    check_resources(request.resources, request.runner)
    points = make_grid(request.recipe, request.grid)
    recipe = points[0].recipe
    folder = request.out or Path(f"{recipe.output}-sweep")
    check_writable(folder, "out")
    questions = request.sources.questions(recipe.model)
    _check_questions(folder, questions)
    for point in _unlike(points):
        try:
            check(point.recipe)
            if point.recipe.shard:
                check_sharding(ALONE, point.recipe.batch_size)
        except UsageError as error:
            raise at_point(point.fields, error) from error
    digests = TextDigests()
    runs = [_run(point, folder, digests) for point in sorted(points, key=_frozen_part)]
    scenario = Scenario(
        name="sweep",
        folder=folder,
        model=ModelSource(recipe.model, recipe.revision, recipe.device, recipe.dtype),
        runs=tuple(runs),
        questions={"reported": questions},
        layout=Layout((), None, stem="sweep"),
        command="defuse sweep",
        share_activations=True,
        keep_models=request.keep,
    )
    named = {_name(point, digests): point for point in points}
    return Plan(request, scenario, named)


def _name(point: Point, digests: TextDigests) -> str:
    """A hash of the recipe, wherever its output is, and of the texts that it reads."""
    return digest([recipe_identity(point.recipe), digests.of(point.recipe)])[:12]


def _run(point: Point, folder: Path, digests: TextDigests) -> Run:
    name, recipe = _name(point, digests), point.recipe
    return Run(
        name=name,
        group=point.setting or UNLEARNED,
        base_group=point.setting or UNLEARNED,
        method=recipe.method.name,
        retain_loss=recipe.retain.loss,
        defence="none" if recipe.noise is None else "rna",
        seed=recipe.seed,
        recipe=replace(recipe, output=str(folder / "models" / name)),
        checkpoints=(recipe.steps,),
    )


def _unlike(points: Sequence[Point]) -> list[Point]:
    unlike: dict[str, Point] = {}
    for point in points:
        identity = {**recipe_identity(point.recipe), SEED: None}
        unlike.setdefault(json.dumps(identity), point)
    return list(unlike.values())


def _frozen_part(point: Point) -> str:
    """Equal for runs that share what the frozen blocks make of their texts; they follow in turn."""
    recipe = point.recipe
    strengths = {"coefficient": None, "scale": None, "weight": None}
    texts = [{**dump(topic), **strengths} for topic in recipe.topics]
    return json.dumps([texts, recipe.layer, recipe.train.layers, recipe.batch_size])


def _check_questions(folder: Path, questions: MCQuestions) -> None:
    """Raise UsageError if the folder holds answers to other questions."""
    path = folder / "sweep.json"
    if path.exists() and _read(path).get("questions") != questions.digest(final=True):
        raise UsageError(f"out: {folder} holds answers to other questions; name a new folder")


def _carry_out(plan: Plan, todo: Sequence[Run], console: Console, progress: Progress) -> None:
    """Every run that is left; its record is kept as soon as it ends."""
    request, folder = plan.request, plan.scenario.folder
    asked = plan.scenario.questions["reported"].digest(final=True)
    reference = other_answers(plan.context, REFERENCE, progress)
    write_json(folder / "sweep.json", {"schema_version": 1, "questions": asked})
    runner = Runner(request.runner, request.resources.workers, request.resources)
    console.print(f"Runs at a time: {runner.at_a_time(len(todo))}")
    table = Table(folder, request.form, _all_records(folder))
    for run, record in run_all(plan.context, todo, runner, progress):
        table.add(_keep(plan, run, record, reference))


def _keep(plan: Plan, run: Run, found: Mapping[str, Any], reference: AnswerTable) -> dict[str, Any]:
    """Write a run's record, with its point in front and its figures."""
    recipe = run.recipe
    record: dict[str, Any] = {
        "run": run.name,
        "fields": plan.points[run.name].values,
        "seed": run.seed,
        "recipe": dump(recipe),
    }
    if "error" not in found:
        answers = load_answers(plan.context, run)[run.steps]
        record["figures"] = as_data(make_group(run.group, "none", [answers], reference))
        record["answers"] = to_old_json(answers)
        record |= last_losses(found["steps"])
    record |= {**found, "finished": datetime.now(UTC).isoformat(timespec="milliseconds")}
    write_json(plan.scenario.folder / "runs" / f"{run.name}.json", record)
    return record


def report(plan: Plan, console: Console) -> int:
    """Table, summary and plot of this grid's runs; returns how many have failed."""
    folder = plan.scenario.folder
    table = Table(folder, plan.request.form, _all_records(folder))
    table.write()
    reference = other_answers(plan.context, REFERENCE)
    records = [(run, plan.record(run) or {}) for run in _in_grid_order(plan)]
    finished = [(run.group, a) for run, _ in records if (a := plan.answers(run)) is not None]
    failed = [
        f"{plan.points[run.name].label or UNLEARNED}: {record['error']}"
        for run, record in records
        if "error" in record
    ]
    groups = make_groups(finished, reference)
    lines = "".join(f"\n- failed: {sentence}" for sentence in failed)
    write_text(folder / "sweep.md", f"{markdown(groups)}{lines}\n")
    first, *settings = groups
    paths = [table.path, folder / "sweep.md"]
    paths += save(draw(first, settings), folder / "sweep") if settings else []
    console.print(screen_table(groups))
    for sentence in failed:
        console.print(f"failed: {sentence}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} failed; --retry-failed runs them again")
    console.print("Written: " + ", ".join(map(str, paths)), highlight=False, soft_wrap=True)
    return len(failed)


def _in_grid_order(plan: Plan) -> list[Run]:
    runs = {run.name: run for run in plan.scenario.runs}
    return [runs[name] for name in plan.points]


def _all_records(folder: Path) -> list[dict[str, Any]]:
    """Every run's record, of this grid or of another."""
    return [_read(path) for path in (folder / "runs").glob("*.json")]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is not a record of a sweep ({error}); remove it") from error
