"""One call of `defuse reproduce`: the paper's rows measured on a model, as far as they can be."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

from pydantic import TypeAdapter

from defuse.attacks.results import Result
from defuse.evaluate import Evaluation, Interval
from defuse.evaluate.answers import Part
from defuse.evaluate.groups import group_figures
from defuse.evaluate.resume import held_together
from defuse.evaluate.run import Job, OnModel, check, partial, run
from defuse.evaluate.sources import Asking
from defuse.evaluate.tasks import SUITES, load_parts
from defuse.evaluate.tasks.load import local_folder
from defuse.experiments.reproduce.paper import CAPTION, ROWS, SHOTS, Row
from defuse.experiments.reproduce.under_gcg import Attack, Effort, accuracies, spread
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN
from defuse.report.format import markdown_table
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, write_json, write_text
from defuse.utils.provenance import versions

LONGEST_NOTE = 160
LATER = "to be measured"
RESULTS, TABLE, ATTACKED = "reproduce.json", "reproduce.md", "mmlu-under-gcg.json"
SUITES_ASKED = tuple(dict.fromkeys(row.suite for row in ROWS))
(UNDER_GCG,) = (row for row in ROWS if row.is_attacked)
HEAD = ("benchmark", "subset", "shots", "n", "model", "base", "paper", "note")


@dataclass(frozen=True)
class Order:
    """Which model, and `base` before unlearning beside it; `data` as for suites.

    `gcg`: how many of MMLU's questions are attacked, and how hard.
    """

    model: str
    out: Path
    base: str | None = None
    data: str | None = None
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 42
    gcg: Effort = field(default_factory=Effort)


@dataclass(frozen=True)
class Measured:
    """A row's accuracy on `n` questions.

    `control`: with the control token in the forget-token's place, or with random suffixes where
    the row is of an attack. `before`: of the same model on the same questions, not attacked.
    """

    n: int
    model: Interval
    control: Interval | None = None
    base: Interval | None = None
    before: Interval | None = None


Found = dict[str, Measured | str]  # by benchmark: a figure, or what it needs


def check_order(order: Order) -> None:
    """Raise UsageError for what cannot be run or written, before any weights are read."""
    check_writable(order.out, "out")
    local_folder(order.data)
    Asking(limit=order.limit)
    for suite in SUITES_ASKED:
        check(_job(order, suite, {}))
    if UNDER_GCG.benchmark not in _kept(order) and isinstance(attack := _attack(order), Attack):
        for name in dict.fromkeys(_models(order).values()):
            attack.check(name)


def reproduce(order: Order, on_model: OnModel, processes: Processes = ALONE) -> Found:
    """Measure every row that can be, and write the table, the rows and a file for each suite.

    Rows measured before in `order.out` are kept. Raises UsageError if they are of another model, by
    its name, or of other options; and for an attack in several processes.
    """
    if order.gcg.questions and processes.count > 1:
        raise UsageError(
            f"gcg: is {order.gcg.questions}, but one process attacks; start it without a launcher, "
            "or measure the other rows first, without --gcg, and then go on alone in the same --out"
        )
    with held_together(partial(order.out), str(order.out), lambda: _check_kept(order), processes):
        found: Found = dict(_kept(order))
        asked = [row for row in ROWS if row.benchmark not in found and not row.is_attacked]
        for suite in SUITES_ASKED:
            rows = [row for row in asked if row.suite == suite]
            parts, needs = _available(order, rows)
            found |= needs
            ready = [row for row in rows if row.benchmark not in needs]
            if ready:
                found |= _measure(_job(order, suite, parts), ready, on_model, processes)
            if processes.is_first:
                _write(order, found)
        if UNDER_GCG.benchmark not in found:
            found[UNDER_GCG.benchmark] = _attacked(order, on_model)
        if processes.is_first:
            _write(order, found)
            if isinstance(found[UNDER_GCG.benchmark], Measured):
                shutil.rmtree(_notes(order), ignore_errors=True)
        processes.wait()
    return found


def table(found: Mapping[str, Measured | str]) -> list[list[str]]:
    """Rows under `HEAD`."""
    return [
        [row.benchmark, row.subset, str(SHOTS), *_cells(row, found.get(row.benchmark, LATER))]
        for row in ROWS
    ]


def _cells(row: Row, found: Measured | str) -> list[str]:
    if isinstance(found, str):
        return [
            "",
            "",
            "",
            f"{row.paper}",
            f"needs {shorten(found, LONGEST_NOTE, placeholder='…')}",
        ]
    notes = [
        row.note,
        found.before and f"{_percent(found.before)} before the attack",
        found.control and f"{_percent(found.control)} with {row.control}",
    ]
    return [
        str(found.n),
        _percent(found.model),
        "" if found.base is None else _percent(found.base),
        f"{row.paper}",
        "; ".join(note for note in notes if note),
    ]


def _percent(interval: Interval) -> str:
    value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _available(
    order: Order, rows: Sequence[Row]
) -> tuple[dict[str, Part], dict[str, Measured | str]]:
    """The subjects whose questions are there, and what rows need that have not all of theirs."""
    parts: dict[str, Part] = {}
    needs: dict[str, Measured | str] = {}
    for row in rows:
        if not set(row.subjects) <= parts.keys():
            suite = SUITES[row.suite].only(row.subjects)
            asking = Asking(SHOTS, order.limit, seed=order.seed)
            try:
                loaded = load_parts(suite, order.data, asking)
            except UsageError as error:
                needs[row.benchmark] = str(error)
            else:
                parts |= dict(zip(row.subjects, loaded, strict=True))
    return parts, needs


def _job(order: Order, suite: str, parts: Mapping[str, Part]) -> Job:
    chosen = SUITES[suite].only([*parts])
    return Job(
        models=(order.model,),
        out=order.out / f"{suite}.json",
        parts=tuple(parts.values()),
        perturbation=chosen.perturbation,
        base=order.base,
        groups=chosen.groups,
        device=order.device,
        dtype=order.dtype,
        sources={"suite": suite, "data": order.data, "limit": order.limit},
    )


def _measure(
    job: Job, rows: Sequence[Row], on_model: OnModel, processes: Processes
) -> dict[str, Measured]:
    reports = {is_base: report.evaluation for report, is_base in run(job, on_model, processes)}
    return {row.benchmark: _figures(row, reports[False], reports.get(True)) for row in rows}


def _figures(row: Row, model: Evaluation, base: Evaluation | None) -> Measured:
    groups = {row.benchmark: row.subjects}
    figures = group_figures(model, groups)[row.benchmark]
    return Measured(
        n=figures[row.variant].n,
        model=figures[row.variant].accuracy,
        control=figures[CONTROL_TOKEN].accuracy if row.variant == FORGET_TOKEN else None,
        base=base and group_figures(base, groups)[row.benchmark][row.variant].accuracy,
    )


def _attack(order: Order) -> Attack | str:
    """What attacks MMLU's questions, or what it needs."""
    if not order.gcg.questions:
        return order.gcg.needs
    parts, needs = _available(order, [UNDER_GCG])
    if needs:
        return str(needs[UNDER_GCG.benchmark])
    questions = spread([*parts.values()], order.gcg.questions)
    config = order.gcg.config(order.seed)
    return Attack(questions, config, _notes(order), order.device, order.dtype)


def _attacked(order: Order, on_model: OnModel) -> Measured | str:
    """The row under attack; what the attack found has a file of its own."""
    attack, models = _attack(order), _models(order)
    if isinstance(attack, str):
        return attack
    results: dict[str, Result] = {}  # by name, since the base may be the model itself
    for part, name in models.items():
        if name not in results:
            results[name] = attack.on(name, part, on_model)
    found = {part: {"name": name, **results[name].as_json()} for part, name in models.items()}
    write_json(order.out / ATTACKED, {**found, "versions": versions()})
    figures = {part: accuracies(results[name]) for part, name in models.items()}
    model, base = figures["model"], figures.get("base")
    return Measured(model.n, model.after, model.random, base and base.after, model.before)


def _models(order: Order) -> dict[str, str]:
    """The models that are attacked, by their part."""
    return {"model": order.model} | ({} if order.base is None else {"base": order.base})


def _notes(order: Order) -> Path:
    """The folder of what an attack has found so far."""
    return partial(order.out) / "gcg"


def _check_kept(order: Order) -> None:
    kept, essence = _read(order), _essence(order)
    if kept and UNDER_GCG.benchmark not in kept["rows"]:
        kept["order"]["gcg"] = essence["gcg"]  # no other row depends on it
    if kept and kept["order"] != essence:
        raise UsageError(
            f"out: {order.out} holds rows of another model or of other options; name another "
            "folder, or remove it"
        )


def _kept(order: Order) -> dict[str, Measured]:
    return TypeAdapter(dict[str, Measured]).validate_python(_read(order).get("rows", {}))


def _read(order: Order) -> dict[str, Any]:
    path = order.out / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _essence(order: Order) -> dict[str, Any]:
    """What rows depend on; where the questions lie is not part of it."""
    return {k: v for k, v in asdict(order).items() if k not in ("out", "data")}


def _write(order: Order, found: Found) -> None:
    measured = {k: asdict(v) for k, v in found.items() if isinstance(v, Measured)}
    needs = {k: v for k, v in found.items() if isinstance(v, str)}
    record = {"order": _essence(order), "rows": measured, "needs": needs, "versions": versions()}
    write_json(order.out / RESULTS, record)
    write_text(order.out / TABLE, f"{CAPTION}\n\n{markdown_table(HEAD, table(found))}")
