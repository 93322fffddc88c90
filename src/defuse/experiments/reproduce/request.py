"""What `defuse reproduce` is asked to measure, and the rows that its folder already has."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from defuse.experiments.reproduce.paper import ROWS, Row
from defuse.experiments.reproduce.table import Found, Measured, markdown
from defuse.experiments.reproduce.under_gcg import Effort
from defuse.store import ResultStore, as_json, differences
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json, write_text
from defuse.utils.provenance import versions

SCHEMA_VERSION = 1
RESULTS, TABLE, ROW_FOLDER = "reproduce.json", "reproduce.md", "rows"


@dataclass(frozen=True)
class Request:
    """The model to measure, and `reference`, the model before unlearning, next to it.

    `data`: another place for the questions, as for suites. `gcg`: how many questions of MMLU are
    attacked, and how hard.
    """

    model: str
    out: Path
    reference: str | None = None
    data: str | None = None
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 42
    gcg: Effort = field(default_factory=Effort)

    @property
    def order(self) -> dict[str, Any]:
        """All that rows depend on, by the names that files have for it."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("out", "data", "reference")}
        return as_json({"model": self.model, "base": self.reference} | kept)


def kept_rows(request: Request) -> dict[str, Measured]:
    """Rows that were measured before. Raises UsageError if they belong to another request."""
    found = _rows_of_old_file(request)
    for row in ROWS:
        result = _store(request, row).get(_file_name(row))
        if result is not None:
            found[row.benchmark] = _measured(result)
    return found


def write_rows(request: Request, found: Found) -> None:
    """Write each measured row to a file of its own, then all of them as JSON and as a table."""
    rows, needs = {}, {}
    for row in ROWS:
        figures = found.get(row.benchmark)
        if isinstance(figures, str):
            needs[row.benchmark] = figures
        elif figures is not None:
            rows[row.benchmark] = _as_json(figures)
            store = _store(request, row)
            store.get_or_compute(_file_name(row), lambda row=row: rows[row.benchmark])
    record = {"order": request.order, "rows": rows, "needs": needs, "versions": versions()}
    write_json(request.out / RESULTS, {"schema_version": SCHEMA_VERSION, **record})
    write_text(request.out / TABLE, markdown(found))


def _store(request: Request, row: Row) -> ResultStore:
    return ResultStore(request.out / ROW_FOLDER, _identity(request.order, row), option="out")


def _identity(order: dict[str, Any], row: Row) -> dict[str, Any]:
    """All that one row depends on: the effort of the attack only matters where there is one."""
    return {k: v for k, v in order.items() if k != "gcg" or row.is_attacked}


def _file_name(row: Row) -> str:
    return row.benchmark.lower().replace(" ", "-")


def _rows_of_old_file(request: Request) -> dict[str, Measured]:
    """Rows that version 0.1.0 kept in `reproduce.json` alone."""
    path = request.out / RESULTS
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text("utf-8"))
        if "schema_version" in document:
            return {}
        old, rows = document["order"], document["rows"]
        kept = [row for row in ROWS if row.benchmark in rows]
        found = {row.benchmark: _measured(rows[row.benchmark]) for row in kept}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: is damaged, or not a result ({error}); delete it") from error
    for row in kept:
        if other := differences(_identity(old, row), _identity(request.order, row)):
            raise UsageError(f"out: {path} belongs to other {', '.join(other)}; name a new folder")
    return found


def _as_json(measured: Measured) -> dict[str, Any]:
    """A row as files have it: the reference's accuracy is called `base` there."""
    row = asdict(measured)
    return as_json({("base" if key == "reference" else key): row[key] for key in row})


def _measured(row: dict[str, Any]) -> Measured:
    return TypeAdapter(Measured).validate_python(
        {("reference" if key == "base" else key): value for key, value in row.items()}
    )
