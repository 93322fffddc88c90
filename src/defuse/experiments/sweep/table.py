"""The one table of a sweep: a line for every run of its folder, finished or failed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow
from pyarrow import parquet

from defuse.utils.files import new_file, write_text

Format = Literal["jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "parquet")
Row = Mapping[str, Any]
Record = Mapping[str, Any]
# What a record holds beyond its line in the table.
ONLY_IN_RECORDS = ("answers", "steps", "changed", "traceback")


class Table:
    """`runs.jsonl` or `runs.parquet` in `folder`, in the order in which runs ended.

    It is replaced whole whenever a run is added.
    """

    def __init__(self, folder: Path, form: Format, records: Iterable[Record]) -> None:
        self.folder = folder
        self.form: Format = form
        self.rows = {record["run"]: row_of(record) for record in records}

    @property
    def path(self) -> Path:
        return self.folder / f"runs.{self.form}"

    def add(self, record: Record) -> None:
        """Add a run's line, or put it in the place of that of an earlier try."""
        self.rows[record["run"]] = row_of(record)
        self.write()

    def write(self) -> None:
        """Write the table; one in another form, which would soon be out of date, goes."""
        rows = sorted(self.rows.values(), key=lambda row: row["finished"])
        if self.form == "jsonl":
            lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
            write_text(self.path, "".join(f"{line}\n" for line in lines))
        else:
            _write_parquet(self.path, rows)
        for other in set(FORMATS) - {self.form}:
            (self.folder / f"runs.{other}").unlink(missing_ok=True)


def row_of(record: Record) -> dict[str, Any]:
    """A record in one line: the grid's fields by name, and figures such as "vulnerability.low"."""
    rest = {name: value for name, value in record.items() if name not in ONLY_IN_RECORDS}
    figures = {
        f"{name}.{part}": value
        for name, figure in rest.pop("figures", {}).items()
        for part, value in figure.items()
    }
    name, fields, recipe = rest.pop("run"), rest.pop("fields"), rest.pop("recipe")
    return {"run": name, **fields, **figures, "error": None, **rest, "recipe": recipe}


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
