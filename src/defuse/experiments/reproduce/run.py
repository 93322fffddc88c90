"""One call of `defuse reproduce`: the rows of the RNA paper that can be measured on a model."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from defuse.evaluate.answers import Part
from defuse.evaluate.groups import GroupFigure, group_figures
from defuse.evaluate.plan import Plan as Evaluations
from defuse.evaluate.plan import check_plan, unfinished
from defuse.evaluate.result_file import Report
from defuse.evaluate.resume import held_together
from defuse.evaluate.run import Results
from defuse.evaluate.run import run as run_evaluation
from defuse.evaluate.sources import Asking
from defuse.evaluate.tasks import SUITES, load_parts
from defuse.evaluate.tasks.load import local_folder
from defuse.experiments.reproduce import published, under_gcg
from defuse.experiments.reproduce.request import Request, kept_rows, write_rows
from defuse.experiments.reproduce.table import PAPER, PERTURBED, ROWS, UNDER_GCG, Measured, Row
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, Variant
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable
from defuse.utils.progress import SILENT, Progress


@dataclass(frozen=True)
class Plan:
    """A request that can be run, and what the rows without questions need.

    `evaluations`: what is to be asked, by suite. `attacks`: those on MMLU; none, if its row is
    measured already or needs something.
    """

    request: Request
    evaluations: Mapping[str, Evaluations]
    needs: Mapping[str, str]
    attacks: under_gcg.Attacks


def check(request: Request) -> Plan:
    """Read all questions. Raises UsageError before any weights are read."""
    check_writable(request.out, "out")
    local_folder(request.data)
    check_plan(_evaluation(request, UNDER_GCG.suite, {}))
    kept, evaluations, needs = kept_rows(request), {}, {}
    if request.perturbed is not None:
        parts = published.load_published(request.perturbed, _asking(request))
        evaluations[published.NAME] = published.evaluation(request, parts)
    elsewhere = {*kept, *((PERTURBED.benchmark,) if evaluations else ())}
    for suite in dict.fromkeys(row.suite for row in ROWS):
        parts, missing = _available(request, _to_measure(suite, elsewhere))
        if parts:  # the suite's file holds the answers of all its rows, or loses those it had
            parts, _ = _available(request, _to_measure(suite, ()))
        evaluations[suite] = _evaluation(request, suite, parts)
        needs |= missing
    attacks: under_gcg.Attacks = {}
    if UNDER_GCG.benchmark not in kept and not request.gcg.questions:
        needs[UNDER_GCG.benchmark] = under_gcg.needs(request.gcg)
    elif UNDER_GCG.benchmark not in kept:
        parts, missing = _available(request, [UNDER_GCG])
        needs |= missing
        if parts:
            questions = under_gcg.spread([*parts.values()], request.gcg.questions)
            attacks = under_gcg.check(request, questions)
    return Plan(request, evaluations, needs, attacks)


def run(
    plan: Plan, progress: Progress = SILENT, processes: Processes = ALONE
) -> dict[str, Measured | str]:
    """Measure every row that can be measured; write the rows, the table and a file for each suite.

    Rows that were measured before are kept. Raises UsageError if they belong to another request,
    and for an attack in several processes.
    """
    request, attacked = plan.request, UNDER_GCG.benchmark
    if request.gcg.questions and processes.count > 1:
        raise UsageError(
            f"gcg: is {request.gcg.questions}, but an attack runs in one process; start it without "
            "a launcher, or measure the other rows first, without --gcg, in the same --out"
        )

    def check_kept() -> None:
        kept_rows(request)

    with held_together(unfinished(request.out), str(request.out), check_kept, processes):
        found: dict[str, Measured | str] = {**plan.needs, **kept_rows(request)}
        for suite, evaluation in plan.evaluations.items():
            if suite == published.NAME and PERTURBED.benchmark not in found:
                results = run_evaluation(evaluation, progress, processes)
                found[PERTURBED.benchmark] = published.measured(results)
            if rows := _to_measure(suite, found):
                results = run_evaluation(evaluation, progress, processes)
                found |= {row.benchmark: _figures(row, results) for row in rows}
            if processes.is_first:
                write_rows(request, found)
        if plan.attacks and attacked not in found:
            found[attacked] = under_gcg.measure(request, plan.attacks, progress)
        if processes.is_first:
            write_rows(request, found)
            if isinstance(found.get(attacked), Measured):
                shutil.rmtree(under_gcg.folder(request), ignore_errors=True)
        processes.wait()
    return found


def _to_measure(suite: str, found: Collection[str]) -> list[Row]:
    """The rows of a suite that are neither found nor under attack."""
    rows = (row for row in ROWS if row.suite == suite and not row.is_attacked)
    return [row for row in rows if row.benchmark not in found]


def _available(request: Request, rows: Sequence[Row]) -> tuple[dict[str, Part], dict[str, str]]:
    """The questions that are there by subject, and what rows need whose questions are not."""
    parts: dict[str, Part] = {}
    needs: dict[str, str] = {}
    asking = _asking(request)
    for row in rows:
        if not set(row.asked) <= parts.keys():
            try:
                loaded = load_parts(SUITES[row.suite].only(row.asked), request.data, asking)
            except UsageError as error:
                needs[row.benchmark] = str(error)
            else:
                parts |= dict(zip(row.asked, loaded, strict=True))
    return parts, needs


def _asking(request: Request) -> Asking:
    return Asking(PAPER.shots, request.limit, seed=request.seed)


def _evaluation(request: Request, suite: str, parts: Mapping[str, Part]) -> Evaluations:
    chosen = SUITES[suite].only([*parts])
    return Evaluations(
        models=(request.model,),
        out=request.out / f"{suite}.json",
        parts=tuple(parts.values()),
        perturbation=chosen.perturbation,
        reference=request.reference,
        groups=chosen.groups,
        device=request.device,
        dtype=request.dtype,
        sources={"suite": suite, "data": request.data, "limit": request.limit},
    )


def _figures(row: Row, results: Results) -> Measured:
    def figures(report: Report) -> Mapping[Variant, GroupFigure]:
        return group_figures(report.evaluation, {row.benchmark: row.asked})[row.benchmark]

    (model,), reference = results.models, results.reference
    own = figures(model)
    return Measured(
        n=own[row.variant].n,
        model=own[row.variant].accuracy,
        control=own[CONTROL_TOKEN].accuracy if row.variant == FORGET_TOKEN else None,
        reference=reference and figures(reference)[row.variant].accuracy,
    )
