"""One call of `defuse reproduce`: the paper's rows measured on a model, as far as they can be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from pydantic import TypeAdapter

from defuse.errors import UsageError
from defuse.evaluate import Evaluation, Interval
from defuse.evaluate.groups import group_figures
from defuse.evaluate.job import Job, OnModel, check, partial, run
from defuse.evaluate.journal import held_together
from defuse.evaluate.material import Asking
from defuse.evaluate.results import Part
from defuse.experiment.words import markdown_table
from defuse.files import check_writable, write_json, write_text
from defuse.processes import ALONE, Processes
from defuse.provenance import versions
from defuse.suites import SUITES, load_parts
from defuse.suites.load import local_folder
from defuse.suites.paper import CAPTION, ROWS, SHOTS, Row

LONGEST_NOTE = 160
RESULTS, TABLE = "reproduce.json", "reproduce.md"
SUITES_ASKED = tuple(dict.fromkeys(row.suite for row in ROWS))
HEAD = ("benchmark", "subset", "shots", "n", "model", "base", "paper", "note")


@dataclass(frozen=True)
class Order:
    """Which model, and `base` before unlearning beside it; `data` as for suites."""

    model: str
    out: Path
    base: str | None = None
    data: str | None = None
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 42


@dataclass(frozen=True)
class Measured:
    """A row's accuracy on `n` questions.

    `control`: with the control token in the forget-token's place.
    """

    n: int
    model: Interval
    control: Interval | None = None
    base: Interval | None = None


Found = dict[str, Measured | str]  # by benchmark: a figure, or what it needs


def check_order(order: Order) -> None:
    """Raise UsageError for what cannot be run or written, before any weights are read."""
    check_writable(order.out, "out")
    local_folder(order.data)
    Asking(limit=order.limit)
    for suite in SUITES_ASKED:
        check(_job(order, suite, {}))


def reproduce(order: Order, on_model: OnModel, processes: Processes = ALONE) -> Found:
    """Measure every row that can be, and write the table, the rows and a file for each suite.

    Rows measured before in `order.out` are kept. Raises UsageError if they are of another model, by
    its name, or of other options.
    """
    with held_together(partial(order.out), str(order.out), lambda: _check_kept(order), processes):
        found: Found = dict(_kept(order))
        for suite in SUITES_ASKED:
            rows = [row for row in ROWS if row.suite == suite and row.benchmark not in found]
            parts, needs = _available(order, rows)
            found |= needs
            ready = [row for row in rows if row.benchmark not in needs]
            if ready:
                found |= _measure(_job(order, suite, parts), ready, on_model, processes)
            if processes.is_first:
                _write(order, found)
        processes.wait()
    return found


def table(found: Mapping[str, Measured | str]) -> list[list[str]]:
    """Rows under `HEAD`."""
    return [
        [row.benchmark, row.subset, str(SHOTS), *_cells(row, found.get(row.benchmark, ""))]
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
    notes = [row.note, found.control and f"{_percent(found.control)} with the control token"]
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
        if row.needs is not None:
            needs[row.benchmark] = row.needs
        elif not set(row.subjects) <= parts.keys():
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
        control=figures["control"].accuracy if row.variant == "forget" else None,
        base=base and group_figures(base, groups)[row.benchmark][row.variant].accuracy,
    )


def _check_kept(order: Order) -> None:
    kept = _read(order)
    if kept and kept["order"] != _essence(order):
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
