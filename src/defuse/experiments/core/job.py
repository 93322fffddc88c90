"""The whole of an experiment: plan, run what is missing, and report what is finished."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from defuse.experiments.core.answers import FORGET, RETAIN, AnswerTable, pooled, slices
from defuse.experiments.core.eta import time_left
from defuse.experiments.core.metrics import Answers, Checkpoints, chance
from defuse.experiments.core.records import failures, print_failures, records
from defuse.experiments.core.report import report
from defuse.experiments.core.results import figures
from defuse.experiments.core.run import (
    REFERENCE,
    RETRAINED,
    ExperimentContext,
    load_answers,
    missing_steps,
    must_record,
    must_write,
    other_answers,
)
from defuse.experiments.core.runner import run_all
from defuse.experiments.core.scenario import Run, Scenario
from defuse.experiments.core.selection import advice, settings_table
from defuse.experiments.core.tables import slice_name
from defuse.methods import METHODS
from defuse.report.format import captioned
from defuse.utils.config import check_fields
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held, write_text
from defuse.utils.progress import SILENT, Progress
from defuse.utils.runner import Runner


@dataclass(frozen=True)
class Request:
    """What is wanted of an experiment.

    `plan`: only say what would run. `tune`: print what the tuning runs advise. `report`: only
    report what is finished. `retry_failed`: run failed runs again.
    """

    plan: bool = False
    tune: bool = False
    report: bool = False
    retry_failed: bool = False
    runner: Runner = field(default_factory=Runner)

    def __post_init__(self) -> None:
        check_fields(self)


def choose_methods(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """The runs of the methods `only` (none: all). Raises UsageError for a method without a run."""
    known = {*METHODS, *(run.method for run in runs)}
    if unknown := set(only) - known:
        raise UsageError(f"only: {unknown.pop()!r} is not a method; use {', '.join(sorted(known))}")
    chosen = [run for run in runs if not only or run.method in only]
    if not chosen:
        raise UsageError(f"only: {', '.join(only)} has no run here; leave it out, or add --full")
    return chosen


def run_experiment(
    scenario: Scenario,
    request: Request | None = None,
    console: Console | None = None,
    progress: Progress = SILENT,
) -> int:
    """Carry out what is missing and report; returns how many runs have failed.

    Raises UsageError for what cannot be run or written, and for answers of another experiment in
    the folder, before anything is trained.
    """
    request, console = request or Request(), console or Console(quiet=True)
    check_writable(scenario.folder, "output")
    context = ExperimentContext(scenario)
    todo = runs_to_do(context, retry_failed=request.retry_failed)
    _announce(context, todo, request, console)
    if request.plan:
        return 0
    if not request.report:
        with held(scenario.folder / ".lock", "output", f"the experiment in {scenario.folder}"):
            # Another writer may have finished some since; done again, a record would be lost.
            todo = runs_to_do(context, retry_failed=request.retry_failed)
            _carry_out(context, todo, request.runner, console, progress)
    elif not finished_runs(context):
        raise UsageError(f"report: nothing is finished in {scenario.folder} yet; run it first")
    answers = read_answers(context, progress)
    failed = _by_label(scenario, _failures(scenario))
    print_failures(failed, console)
    if request.tune:
        report_tuning(scenario, answers, console)
    else:
        report(scenario, answers, _failures(scenario), console)
    return len(failed)


def runs_to_do(context: ExperimentContext, *, retry_failed: bool) -> list[Run]:
    """The runs with missing answers, without those that failed unless they are to be retried."""
    failed = {} if retry_failed else _failures(context.scenario)
    return [
        run
        for run in context.scenario.runs
        if run.name not in failed
        and (missing_steps(context, run) or must_write(context, run) or must_record(context, run))
    ]


def _failures(scenario: Scenario) -> dict[str, str]:
    return failures(scenario.folder, [run.name for run in scenario.runs])


def _by_label(scenario: Scenario, failed: Mapping[str, str]) -> dict[str, str]:
    return {run.label or run.name: failed[run.name] for run in scenario.runs if run.name in failed}


def finished_runs(context: ExperimentContext) -> dict[Run, Checkpoints]:
    """The answers of each run whose last step was asked; another's last step is yet to come."""
    found = {run: load_answers(context, run) for run in context.scenario.runs}
    return {run: steps for run, steps in found.items() if run.steps in steps}


def read_answers(context: ExperimentContext, progress: Progress = SILENT) -> Answers:
    """All answers that are there, and those of the reference and the retrained model."""
    retrained = context.scenario.retrained
    return Answers(
        finished_runs(context),
        other_answers(context, REFERENCE, progress),
        None if retrained is None else other_answers(context, RETRAINED, progress),
    )


def _announce(
    context: ExperimentContext, todo: Sequence[Run], request: Request, console: Console
) -> None:
    runs, failed = context.scenario.runs, _failures(context.scenario)
    waiting = {run.name for run in todo}
    if request.plan:
        for place, run in enumerate(runs, start=1):
            done = "failed" if run.name in failed else "finished"
            state = "to do" if run.name in waiting else done
            line = f"{place:3}. {run.label or run.name}: {run.steps} steps ({state})"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    left = time_left(context, todo, request.runner.at_a_time(len(todo))) if todo else "nothing"
    console.print(f"{len(todo)} of {len(runs)} runs to do: {left} on this machine.")


def _carry_out(
    context: ExperimentContext,
    todo: Sequence[Run],
    runner: Runner,
    console: Console,
    progress: Progress,
) -> None:
    scenario = context.scenario
    reference = other_answers(context, REFERENCE, progress)
    for caution in check_knowledge(reference, scenario.least_known):
        console.print(caution, highlight=False, soft_wrap=True)
    for run, record in run_all(context, todo, runner, progress) if todo else ():
        if scenario.describe is not None:
            last = None if "error" in record else load_answers(context, run)[run.steps]
            record |= scenario.describe(run, last, reference)
        records(scenario.folder).put(run.name, record)
        if scenario.listing is not None:
            scenario.listing(scenario.folder)


def check_knowledge(reference: AnswerTable, least: tuple[float, float] | None = None) -> list[str]:
    """Cautions about a reference model that knows too little for forgetting to mean anything.

    `least`: accuracies on every slice below which it is refused with a UsageError, and below which
    a caution says so; None cautions about sets that are answered no better than by chance.
    """
    if least is None:
        return list(_unknown(reference))
    cautions = []
    for part in slices(reference):
        known = figures(pooled(reference, part))["accuracy"]
        said = f"the reference model answers {known:.2f} of the questions '{slice_name(part)}'"
        if known < least[0]:
            raise UsageError(f"model: {said}; train it for longer (defuse lab train --steps)")
        if known < least[1]:
            cautions.append(f"Caution: {said} and should answer {least[1]}.")
    return cautions


def _unknown(reference: AnswerTable) -> Iterator[str]:
    for part, lost in ((FORGET, "forget"), (RETAIN, "lose")):
        known = figures(pooled(reference, part))
        if known["low"] <= chance(reference, part):
            yield (
                f"Caution: the reference model answers {known['accuracy']:.2f} of the {part.kind} "
                f"questions, no better than chance: nothing to {lost}. Small models often cannot "
                "answer with a letter; try score: cloze."
            )


def report_tuning(scenario: Scenario, answers: Answers, console: Console) -> None:
    """Print what the tuning runs advise, and write it with a table of all settings."""
    found = "\n".join(advice(answers, scenario.layout.judged))
    table = captioned(settings_table(answers, scenario.layout.slices))
    write_text(scenario.folder / "tuning.md", f"{found}\n\n{table}")
    console.print(found, highlight=False, markup=False, soft_wrap=True)


def folder_of(output: Path, *, tune: bool) -> Path:
    """Where answers go: those to tuning questions have a folder of their own."""
    return output / "tuning" if tune else output
