"""The table of a sweep: a line for every run of its folder, finished or failed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pyarrow
from pyarrow import parquet

from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_TOKEN,
    RETAIN,
    AnswerTable,
    Slice,
)
from defuse.experiments.core.metrics import make_group
from defuse.experiments.core.records import records
from defuse.utils.files import new_file, write_text

Format = Literal["jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "parquet")
Row = dict[str, Any]
# What a record holds beyond its line in the table; "answers" are of version 0.1.0.
ONLY_IN_RECORDS = ("answers", "steps", "changed", "traceback")


def figures(answers: AnswerTable, reference: AnswerTable) -> dict[str, dict[str, float]]:
    """A run's figures by name, each with its interval and number of questions."""
    group = make_group("", answers, reference)
    parts = {"forget_accuracy": FORGET, "retain_accuracy": RETAIN}
    for position in group.vulnerability:
        parts["after_control_accuracy"] = Slice("retain", CONTROL_TOKEN, position)
        parts["after_forget_accuracy"] = Slice("retain", FORGET_TOKEN, position)
    found = {name: (group.n[part], group.accuracy[part]) for name, part in parts.items()}
    for accuracy, nats in group.vulnerability.values():
        found["vulnerability"] = group.n[RETAIN], accuracy
        found["vulnerability_nats"] = group.n[RETAIN], nats
    for accuracy, _ in group.any_sentence.values():
        found["any_sentence"] = group.n[RETAIN], accuracy
    return {name: {"n": n, **asdict(interval)} for name, (n, interval) in found.items()}


def write_table(form: Format, folder: Path) -> Path:
    """Write runs.jsonl or runs.parquet from all records in `folder`, in the order they ended.

    One in another form, which would soon be out of date, goes.
    """
    store = records(folder)
    rows = [_row(store.get(name) or {}) for name in store.names()]
    rows.sort(key=lambda row: row["finished"])
    path = folder / f"runs.{form}"
    if form == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
        write_text(path, "".join(f"{line}\n" for line in lines))
    else:
        _write_parquet(path, rows)
    for other in set(FORMATS) - {form}:
        (folder / f"runs.{other}").unlink(missing_ok=True)
    return path


def _row(record: Mapping[str, Any]) -> Row:
    """A record in one line: the grid's fields by name, and figures such as "vulnerability.low"."""
    rest = {name: value for name, value in record.items() if name not in ONLY_IN_RECORDS}
    figures = {
        f"{name}.{part}": value
        for name, figure in rest.pop("figures", {}).items()
        for part, value in figure.items()
    }
    if "any_sentence.low" in figures:  # else the model fails after any sentence
        figures["vulnerability.readable"] = figures["any_sentence.low"] <= 0
    before, after = rest.pop("check_up", {}).get("perplexity", (None, None))
    if after is not None:
        figures |= {"perplexity.before": before, "perplexity.after": after}
    losses = _last_losses(record["steps"]) if "steps" in record else {}
    name, fields, recipe = rest.pop("run"), rest.pop("fields"), rest.pop("recipe")
    line = {"run": name, **fields, **figures, "error": None, **losses, **rest}
    return {**line, "recipe": recipe}


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    with new_file(path) as file:
        parquet.write_table(pyarrow.table(columns), file)


def _column(values: Sequence[Any]) -> pyarrow.Array:
    """Values of one kind as they are; mappings, and what differs in kind, as JSON."""
    if not any(isinstance(value, Mapping) for value in values):
        try:
            return pyarrow.array(values)
        except pyarrow.ArrowException:
            pass
    return pyarrow.array([None if v is None else json.dumps(v, ensure_ascii=False) for v in values])


def _last_losses(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The losses of each topic's last step, averaged over topics."""
    last = {step["topic"]: step for step in steps}.values()
    return {
        name: sum(step[name] for step in last) / len(last)
        for name in ("forget_loss", "retain_loss")
    }
