"""`defuse tofu`: check, carry out what is missing, and report what is finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from defuse.evaluate.tasks.tofu.metrics import check_rouge
from defuse.experiments.tofu.recipe import TofuRecipe
from defuse.experiments.tofu.stages import (
    Stage,
    TofuData,
    all_stages,
    execute,
    failures,
    load_answers,
    prepare,
    read_data,
)
from defuse.experiments.tofu.table import Row, as_data, make_rows, markdown, screen_table
from defuse.store import SCHEMA_VERSION
from defuse.utils.config import dump
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held, write_json, write_text
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import versions


@dataclass(frozen=True)
class Request:
    """A recipe, and what is wanted of it.

    `plan`: only say what would run. `report`: only report what is finished. `retry_failed`: run
    failed stages again.
    """

    recipe: TofuRecipe
    plan: bool = False
    report: bool = False
    retry_failed: bool = False


@dataclass(frozen=True)
class Plan:
    """A checked request with its data; `states`: of each stage, "finished", "failed" or "to do"."""

    request: Request
    data: TofuData
    states: Mapping[Stage, str]

    @property
    def todo(self) -> list[Stage]:
        """The stages to carry out."""
        return [stage for stage, state in self.states.items() if state == "to do"]


def check(request: Request) -> Plan:
    """Read the data and what is finished.

    Raises UsageError for what cannot be run or written, and for answers of another recipe.
    """
    recipe = request.recipe
    check_writable(Path(recipe.output), "output")
    check_rouge()
    failed = {} if request.retry_failed else failures(recipe)
    states = {}
    for stage in all_stages(recipe):
        finished = load_answers(recipe, stage) is not None
        states[stage] = "finished" if finished else "failed" if stage in failed else "to do"
    if request.report and "finished" not in states.values():
        raise UsageError(f"report: nothing is finished in {recipe.output} yet; run it first")
    return Plan(request, read_data(recipe), states)


def run(plan: Plan, progress: Progress = SILENT) -> None:
    """Carry out all stages to do. Raises UsageError, before anything is taught, as `check` does."""
    recipe = plan.request.recipe
    with held(Path(recipe.output, "lock"), "output", recipe.output):
        prepare(recipe, plan.data, plan.todo)
        for stage in plan.todo:
            execute(recipe, plan.data, stage, progress)


def run_tofu(request: Request, console: Console, progress: Progress = SILENT) -> int:
    """Carry out what is missing and report; returns how many stages have failed."""
    plan, recipe = check(request), request.recipe
    _announce(plan, console)
    if request.plan:
        return 0
    if not request.report:
        run(plan, progress)
    stages = all_stages(recipe)
    known = {stage: load_answers(recipe, stage) for stage in stages}
    failed = {stage: why for stage, why in failures(recipe).items() if known[stage] is None}
    for stage, why in failed.items():
        console.print(f"failed: {stage}: {why}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} failed; --retry-failed runs them again")
    rows = make_rows(recipe, {stage: each for stage, each in known.items() if each is not None})
    if rows:
        _report(recipe, rows, console)
    return len(failed)


def _announce(plan: Plan, console: Console) -> None:
    if plan.request.plan:
        for place, (stage, state) in enumerate(plan.states.items(), start=1):
            console.print(f"{place:3}. {stage} ({state})", highlight=False, soft_wrap=True)
    console.print(f"{len(plan.todo)} of {len(plan.states)} models to do.", highlight=False)


def _report(recipe: TofuRecipe, rows: Sequence[Row], console: Console) -> None:
    """Write results.md and results.json; print the table."""
    folder = Path(recipe.output)
    write_text(folder / "results.md", markdown(rows))
    found = {"recipe": dump(recipe), "rows": as_data(rows), "versions": versions()}
    write_json(folder / "results.json", {"schema_version": SCHEMA_VERSION, **found})
    console.print(screen_table(rows))
    console.print(f"Written in {folder}: results.md, results.json", highlight=False)
