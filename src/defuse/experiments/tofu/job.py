"""`defuse tofu`: check, carry out what is missing, and report what is finished."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from defuse.evaluate.tasks.tofu.data import FORGET, RETAIN
from defuse.evaluate.tasks.tofu.metrics import check_rouge
from defuse.evaluate.tasks.tofu.part import TofuPart, load_tofu_part
from defuse.experiments.core.job import Request
from defuse.experiments.core.records import print_failures
from defuse.experiments.tofu.recipe import TofuRecipe
from defuse.experiments.tofu.stages import Stage, all_stages, execute, prepare
from defuse.experiments.tofu.table import Row, make_rows, markdown, on_screen
from defuse.report.format import screen_table
from defuse.store import SCHEMA_VERSION
from defuse.utils.config import dump
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held, write_json, write_text
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import versions


def read_data(recipe: TofuRecipe) -> TofuPart:
    """Read the rows of TOFU that the recipe asks for. Raises UsageError for what is missing."""
    check_rouge()
    authors = {FORGET: recipe.forget_authors, RETAIN: recipe.retain_authors}
    return load_tofu_part(recipe.data, recipe.forget, authors, recipe.skip_authors, recipe.asked)


def run_tofu(
    recipe: TofuRecipe, request: Request, console: Console, progress: Progress = SILENT
) -> int:
    """Carry out what is missing and report; returns how many stages have failed.

    Raises UsageError, before anything is taught, for what cannot be run or written, and for answers
    of another recipe.
    """
    check_writable(Path(recipe.output), "output")
    states = {stage: _state(stage, request) for stage in all_stages(recipe)}
    todo = [stage for stage, state in states.items() if state == "to do"]
    if request.plan:
        for place, (stage, state) in enumerate(states.items(), start=1):
            console.print(f"{place:3}. {stage} ({state})", highlight=False, soft_wrap=True)
    console.print(f"{len(todo)} of {len(states)} models to do.", highlight=False)
    if request.plan:
        _print_missing(recipe, console)
        return 0
    if request.report and "finished" not in states.values():
        raise UsageError(f"report: nothing is finished in {recipe.output} yet; run it first")
    if todo and not request.report:
        _carry_out(recipe, todo, progress)
    answers = {stage: stage.answers for stage in states}
    finished = {stage: each for stage, each in answers.items() if each is not None}
    unfinished = (stage for stage in states if stage not in finished)
    failed = {str(stage): stage.error for stage in unfinished if stage.error}
    print_failures(failed, console)
    if finished:
        _report(recipe, make_rows(recipe, finished), console)
    return len(failed)


def _state(stage: Stage, request: Request) -> str:
    if stage.answers is not None:
        return "finished"
    return "failed" if stage.error and not request.retry_failed else "to do"


def _print_missing(recipe: TofuRecipe, console: Console) -> None:
    """Say what the data or the packages lack; a plan needs neither."""
    try:
        read_data(recipe)
    except UsageError as error:
        console.print(f"Not ready: {error}", highlight=False, markup=False, soft_wrap=True)


def _carry_out(recipe: TofuRecipe, todo: Sequence[Stage], progress: Progress) -> None:
    part = read_data(recipe)
    with held(Path(recipe.output, "lock"), "output", recipe.output):
        prepare(recipe, part, todo)
        for stage in todo:
            execute(stage, part, progress)


def _report(recipe: TofuRecipe, rows: Sequence[Row], console: Console) -> None:
    """Write results.md and results.json; print the table."""
    folder = Path(recipe.output)
    write_text(folder / "results.md", markdown(rows))
    found = {"recipe": dump(recipe), "rows": [asdict(row) for row in rows], "versions": versions()}
    write_json(folder / "results.json", {"schema_version": SCHEMA_VERSION, **found})
    console.print(screen_table(on_screen(rows)))
    console.print(f"Written in {folder}: results.md, results.json", highlight=False)
