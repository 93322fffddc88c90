"""A sweep from an order to its table and plot: all is checked first, and what is finished stays."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from defuse.experiments.sweep.cluster import (
    Resources,
    answer_of,
    check_resources,
    connected,
    run_all,
    started_workers,
)
from defuse.experiments.sweep.exam import Exam, Sources, build_exam
from defuse.experiments.sweep.figure import draw
from defuse.experiments.sweep.grid import SEED, Point, at_point, make_grid, recipe_essence
from defuse.experiments.sweep.records import (
    Record,
    Run,
    all_records,
    base_file,
    name_runs,
    read_base,
    read_record,
    write_record,
)
from defuse.experiments.sweep.summary import Group, figures, make_groups, markdown, screen_table
from defuse.experiments.sweep.table import Format, Table
from defuse.experiments.sweep.worker import Base, Task
from defuse.models.fsdp import check_sharding
from defuse.models.load import resolve_device
from defuse.report.plots import save
from defuse.unlearning.run import check
from defuse.utils.config import dump, without_none
from defuse.utils.distributed import ALONE
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held, write_json, write_text
from defuse.utils.provenance import versions

UNLEARNED = "unlearned"  # of a grid with a single setting


@dataclass(frozen=True)
class Order:
    """What `defuse sweep` was asked for.

    `grid`: texts such as "seed=0..4" (`sweep.grid`). `out`: None is the recipe's output with
    "-sweep" behind it. `keep`: checkpoints, too. `plan`: only say what would run.
    """

    recipe: Path
    grid: tuple[str, ...]
    sources: Sources
    out: Path | None = None
    keep: bool = False
    retry_failed: bool = False
    plan: bool = False
    form: Format = "jsonl"
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class Sweep:
    """An order with everything read and checked."""

    order: Order
    folder: Path
    runs: Sequence[Run]
    exam: Exam

    def left(self) -> list[Run]:
        """The runs to do: those without a record, and failed ones if they are to be retried."""
        return [run for run in self.runs if not self._is_done(run)]

    def _is_done(self, run: Run) -> bool:
        record = read_record(self.folder, run)
        if record is None:
            return False
        if "error" in record:
            return not self.order.retry_failed
        return not self.order.keep or Path(run.point.recipe.output).is_dir()


def carry_out(order: Order, console: Console) -> int:
    """Do what is left of the sweep and report it; returns how many of its runs have failed.

    Raises UsageError for whatever can be refused before anything runs.
    """
    sweep = prepare(order)
    if order.plan:
        _announce(sweep, sweep.left(), console)
        for run in sweep.runs:
            console.print(f"{run.name}  {run.point.label}", highlight=False, markup=False)
        return 0
    with held(sweep.folder / ".lock", "out", f"the sweep in {sweep.folder}"):
        todo = sweep.left()
        _announce(sweep, todo, console)
        if todo:
            _run(sweep, todo, console)
        return report(sweep, console)


def _announce(sweep: Sweep, todo: Sequence[Run], console: Console) -> None:
    console.print(f"{len(todo)} of {len(sweep.runs)} runs to do, in {sweep.folder}")


def prepare(order: Order) -> Sweep:
    """Read recipes, texts and questions, and check one point of all that differ in their seed.

    Raises UsageError, naming the point, for what cannot run.
    """
    check_resources(order.resources)
    points = make_grid(order.recipe, order.grid)
    recipe = points[0].recipe
    folder = order.out or Path(f"{recipe.output}-sweep")
    check_writable(folder, "out")
    exam = build_exam(order.sources, recipe.model)
    read_base(folder, exam.digest)
    for point in _unlike(points):
        try:
            check(point.recipe)
            if point.recipe.shard:
                check_sharding(ALONE, point.recipe.batch_size)
        except UsageError as error:
            raise at_point(point.fields, error) from error
    return Sweep(order, folder, name_runs(points, folder), exam)


def _unlike(points: Sequence[Point]) -> list[Point]:
    unlike: dict[str, Point] = {}
    for point in points:
        essence = {**recipe_essence(point.recipe), SEED: None}
        unlike.setdefault(json.dumps(essence), point)
    return list(unlike.values())


def _run(sweep: Sweep, todo: Sequence[Run], console: Console) -> None:
    """Every run that is left; each is kept as soon as it is done."""
    recipe, resources = todo[0].point.recipe, sweep.order.resources
    if resources.gpus is None:
        on_gpu = resolve_device(recipe.device).type == "cuda"
        resources = replace(resources, gpus=float(on_gpu))
    source = Base(recipe.model, recipe.revision, recipe.device, recipe.dtype, str(Path.cwd()))
    runs = {run.name: run for run in sorted(todo, key=_frozen_part)}
    arguments = (resources, len(runs), source, sweep.exam)
    with connected(resources), started_workers(*arguments) as workers:
        console.print(f"Runs at a time: {len(workers)}")
        base = _base(sweep, workers[0])
        tasks = {name: _task(run, base, keep=sweep.order.keep) for name, run in runs.items()}
        table = Table(sweep.folder, sweep.order.form, all_records(sweep.folder))
        with Progress(console=Console(stderr=True)) as progress:
            for name, found in progress.track(
                run_all(workers, tasks), len(tasks), description="runs"
            ):
                table.add(_keep(sweep, runs[name], found, base))


def _frozen_part(run: Run) -> str:
    """Equal for runs that share what the frozen blocks make of their texts; they come in turn."""
    recipe = run.point.recipe
    strengths = {"coefficient": None, "scale": None, "weight": None}
    texts = [{**dump(topic), **strengths} for topic in recipe.topics]
    return json.dumps([texts, recipe.layer, recipe.train.layers, recipe.batch_size])


def _base(sweep: Sweep, worker: Any) -> Record:  # noqa: ANN401 (Ray's handle)
    """The base model's record, asked by `worker` unless it is there."""
    identity = answer_of(worker.identify.remote())
    known = read_base(sweep.folder, sweep.exam.digest)
    if known is None:
        known = {
            "identity": identity,
            "exam": sweep.exam.digest,
            "sources": asdict(sweep.order.sources),
            "answers": answer_of(worker.ask_base.remote()),
            "versions": versions(),
        }
        write_json(base_file(sweep.folder), known)
    if known["identity"] != identity:
        raise UsageError(
            f"out: {sweep.folder} holds a sweep of another model, or of this one in another "
            "precision; name a new folder"
        )
    return known


def _task(run: Run, base: Record, *, keep: bool) -> Task:
    recipe = without_none(dump(run.point.recipe))
    return Task(recipe, base["identity"], keep)


def _keep(sweep: Sweep, run: Run, found: Record, base: Record) -> Record:
    """Write what a worker found, with its figures."""
    if "error" not in found:
        own = figures([found["answers"]], base["answers"])
        found = {"figures": {name: each.as_data() for name, each in own.items()}, **found}
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    return write_record(sweep.folder, run, {**found, "finished": when})


def report(sweep: Sweep, console: Console) -> int:
    """Table, summary and plot of this grid's runs; returns how many have failed."""
    table = Table(sweep.folder, sweep.order.form, all_records(sweep.folder))
    table.write()
    base = read_base(sweep.folder, sweep.exam.digest) or {}
    records = [(run.point, read_record(sweep.folder, run) or {}) for run in sweep.runs]
    finished = [(p.setting or UNLEARNED, r["answers"]) for p, r in records if "answers" in r]
    failed = [f"{p.label or UNLEARNED}: {r['error']}" for p, r in records if "error" in r]
    groups = make_groups(finished, base["answers"])
    paths = [table.path, *_write_summary(sweep.folder, groups, failed)]
    console.print(screen_table(groups))
    for sentence in failed:
        console.print(f"failed: {sentence}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} failed; --retry-failed tries them again")
    console.print("Written: " + ", ".join(map(str, paths)), highlight=False, soft_wrap=True)
    return len(failed)


def _write_summary(folder: Path, groups: Sequence[Group], failed: Sequence[str]) -> list[Path]:
    page = folder / "sweep.md"
    lines = "".join(f"\n- failed: {sentence}" for sentence in failed)
    write_text(page, f"{markdown(groups)}{lines}\n")
    base, *settings = groups
    return [page, *(save(draw(base, settings), folder / "sweep") if settings else ())]
