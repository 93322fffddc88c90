"""One call of `defuse reproduce`: the rows of the RNA paper that can be measured on a model."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from defuse.attacks.results import Result
from defuse.evaluate import Evaluation
from defuse.evaluate.answers import Part
from defuse.evaluate.groups import group_figures
from defuse.evaluate.plan import Plan as Evaluations
from defuse.evaluate.plan import check_plan, unfinished
from defuse.evaluate.resume import held_together
from defuse.evaluate.run import run as run_evaluation
from defuse.evaluate.sources import Asking
from defuse.evaluate.tasks import SUITES, load_parts
from defuse.evaluate.tasks.load import local_folder
from defuse.experiments.reproduce.paper import ROWS, SHOTS, Row
from defuse.experiments.reproduce.request import Request, kept_rows, write_rows
from defuse.experiments.reproduce.table import Measured
from defuse.experiments.reproduce.under_gcg import Attack, accuracies, spread
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, write_json
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import versions

ATTACKED = "mmlu-under-gcg.json"
SUITES_ASKED = tuple(dict.fromkeys(row.suite for row in ROWS))
(UNDER_GCG,) = (row for row in ROWS if row.is_attacked)


@dataclass(frozen=True)
class Plan:
    """A request that can be run: its questions, and what the rows without questions need.

    `parts`: the questions by suite and subject. `attack`: the attack on MMLU, or what it needs.
    """

    request: Request
    parts: Mapping[str, Mapping[str, Part]]
    needs: Mapping[str, str]
    attack: Attack | str


def check(request: Request) -> Plan:
    """Read all questions. Raises UsageError before any weights are read."""
    check_writable(request.out, "out")
    local_folder(request.data)
    Asking(limit=request.limit)
    kept = kept_rows(request)
    parts, needs = {}, {}
    for suite in SUITES_ASKED:
        check_plan(_evaluation(request, suite, {}))
        rows = [row for row in _rows_of(suite) if row.benchmark not in kept]
        parts[suite], missing = _available(request, rows)
        needs |= missing
    attack = "" if UNDER_GCG.benchmark in kept else _attack(request)
    if isinstance(attack, Attack):
        for name in dict.fromkeys(_models(request).values()):
            attack.check(name)
    return Plan(request, parts, needs, attack)


def run(
    plan: Plan, progress: Progress = SILENT, processes: Processes = ALONE
) -> dict[str, Measured | str]:
    """Measure every row that can be measured; write the rows, the table and a file for each suite.

    Rows that were measured before are kept. Raises UsageError if they belong to another request,
    and for an attack in several processes.
    """
    request = plan.request
    if request.gcg.questions and processes.count > 1:
        raise UsageError(
            f"gcg: is {request.gcg.questions}, but an attack runs in one process; start it without "
            "a launcher, or measure the other rows first, without --gcg, in the same --out"
        )

    def check_kept() -> None:
        kept_rows(request)

    with held_together(unfinished(request.out), str(request.out), check_kept, processes):
        found: dict[str, Measured | str] = {**plan.needs, **kept_rows(request)}
        for suite in SUITES_ASKED:
            rows = [row for row in _rows_of(suite) if row.benchmark not in found]
            if rows:
                found |= _measure(plan, suite, rows, progress, processes)
            if processes.is_first:
                write_rows(request, found)
        if UNDER_GCG.benchmark not in found:
            found[UNDER_GCG.benchmark] = _measure_under_gcg(plan, progress)
        if processes.is_first:
            write_rows(request, found)
            if isinstance(found[UNDER_GCG.benchmark], Measured):
                shutil.rmtree(_unfinished(request), ignore_errors=True)
        processes.wait()
    return found


def _rows_of(suite: str) -> list[Row]:
    return [row for row in ROWS if row.suite == suite and not row.is_attacked]


def _available(request: Request, rows: Sequence[Row]) -> tuple[dict[str, Part], dict[str, str]]:
    """The questions that are there by subject, and what rows need whose questions are not."""
    parts: dict[str, Part] = {}
    needs: dict[str, str] = {}
    for row in rows:
        if not set(row.subjects) <= parts.keys():
            suite = SUITES[row.suite].only(row.subjects)
            asking = Asking(SHOTS, request.limit, seed=request.seed)
            try:
                loaded = load_parts(suite, request.data, asking)
            except UsageError as error:
                needs[row.benchmark] = str(error)
            else:
                parts |= dict(zip(row.subjects, loaded, strict=True))
    return parts, needs


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


def _measure(
    plan: Plan, suite: str, rows: Sequence[Row], progress: Progress, processes: Processes
) -> dict[str, Measured]:
    wanted = {subject for row in rows for subject in row.subjects}
    parts = {name: part for name, part in plan.parts[suite].items() if name in wanted}
    results = run_evaluation(_evaluation(plan.request, suite, parts), progress, processes)
    (model,), reference = results.models, results.reference
    return {
        row.benchmark: _figures(row, model.evaluation, reference and reference.evaluation)
        for row in rows
    }


def _figures(row: Row, model: Evaluation, reference: Evaluation | None) -> Measured:
    groups = {row.benchmark: row.subjects}
    figures = group_figures(model, groups)[row.benchmark]
    return Measured(
        n=figures[row.variant].n,
        model=figures[row.variant].accuracy,
        control=figures[CONTROL_TOKEN].accuracy if row.variant == FORGET_TOKEN else None,
        reference=reference
        and group_figures(reference, groups)[row.benchmark][row.variant].accuracy,
    )


def _attack(request: Request) -> Attack | str:
    """The attack on the questions of MMLU, or what it needs."""
    if not request.gcg.questions:
        return request.gcg.needs
    parts, needs = _available(request, [UNDER_GCG])
    if needs:
        return needs[UNDER_GCG.benchmark]
    questions = spread([*parts.values()], request.gcg.questions)
    config = request.gcg.config(request.seed)
    return Attack(questions, config, _unfinished(request), request.device, request.dtype)


def _measure_under_gcg(plan: Plan, progress: Progress) -> Measured | str:
    """Measure the row under attack; the attack's details are written to a file of their own."""
    if isinstance(plan.attack, str):
        return plan.attack
    models = _models(plan.request)
    results: dict[str, Result] = {}  # by name, since the reference may be the model itself
    for role, name in models.items():
        if name not in results:
            results[name] = plan.attack.on(name, role, progress)
    found = {role: {"name": name, **results[name].as_json()} for role, name in models.items()}
    write_json(plan.request.out / ATTACKED, {**found, "versions": versions()})
    model = accuracies(results[plan.request.model])
    row = Measured(model.n, model.after, model.random, before=model.before)
    if plan.request.reference is None:
        return row
    return replace(row, reference=accuracies(results[plan.request.reference]).after)


def _models(request: Request) -> dict[str, str]:
    """The models to attack, by the names that files have for their roles."""
    return {"model": request.model} | (
        {} if request.reference is None else {"base": request.reference}
    )


def _unfinished(request: Request) -> Path:
    """The folder of what an unfinished attack has found."""
    return unfinished(request.out) / "gcg"
