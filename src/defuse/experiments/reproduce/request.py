"""What `defuse reproduce` is asked to measure, and the rows that its folder already has."""

from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from defuse.attacks.gcg import GCG
from defuse.experiments.reproduce.table import PERTURBED, ROWS, Found, Measured, Row, table
from defuse.models.file_identity import file_identity
from defuse.models.locate import locate
from defuse.report.format import markdown_table
from defuse.store import SCHEMA_VERSION, ResultStore, differences
from defuse.utils.config import Count, Natural, check_fields
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json, write_text
from defuse.utils.json_text import parse_json
from defuse.utils.provenance import versions

RESULTS, TABLE, ROW_FOLDER = "reproduce.json", "reproduce.md", "rows"
AS_JSON = TypeAdapter(Measured)


@dataclass(frozen=True)
class Effort:
    """How many questions are attacked (0 = none), and how hard.

    The search takes at most `steps` steps a question and tries `width` suffixes in each.
    """

    questions: Natural = 0
    steps: Count = GCG.steps
    width: Count = GCG.search_width

    def __post_init__(self) -> None:
        check_fields(self, "gcg")


@dataclass(frozen=True)
class Request:
    """The model to measure, and `reference`, the model before unlearning, next to it.

    `data`: another place for the questions, as for suites. `gcg`: how many questions of MMLU are
    attacked, and how hard. `perturbed`: a file, folder or hub dataset with the perturbed questions
    that the paper's authors published, in place of our own.
    """

    model: str
    out: Path
    reference: str | None = None
    data: str | None = None
    limit: Count | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 42
    gcg: Effort = field(default_factory=Effort)
    perturbed: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def models(self) -> dict[str, str]:
        """The models, by the names that files have for them."""
        given = {"model": self.model, "base": self.reference}
        return {role: name for role, name in given.items() if name is not None}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that rows depend on: the models' names and files, and the options."""
        other = ("out", "data", "reference", *(("perturbed",) if self.perturbed is None else ()))
        options = {k: v for k, v in asdict(self).items() if k not in other}
        files = {f"{role}_files": file_identity(locate(n)) for role, n in self.models.items()}
        return {**options, "base": self.reference, **files}


def kept_rows(request: Request) -> dict[str, Measured]:
    """Rows that were measured before. Raises UsageError if they belong to another request."""
    found = _rows_of_old_file(request)
    for row in ROWS:
        result = _store(request, row).get(_file_name(row))
        if result is not None:
            found[row.benchmark] = AS_JSON.validate_python(result)
    return found


def write_rows(request: Request, found: Found) -> None:
    """Write each measured row to a file of its own, then all of them as JSON and as a table."""
    needs = {name: figures for name, figures in found.items() if isinstance(figures, str)}
    rows = {}
    for row in ROWS:
        if isinstance(figures := found.get(row.benchmark), Measured):
            compute = partial(AS_JSON.dump_python, figures, by_alias=True)
            rows[row.benchmark] = _store(request, row).get_or_compute(_file_name(row), compute)
    record = {"order": request.identity, "rows": rows, "needs": needs, "versions": versions()}
    write_json(request.out / RESULTS, {"schema_version": SCHEMA_VERSION, **record})
    shown = table(found, request.perturbed)
    text = f"{shown.caption}\n\n{markdown_table(shown.head, shown.rows)}"
    write_text(request.out / TABLE, text)


def _store(request: Request, row: Row) -> ResultStore:
    return ResultStore(request.out / ROW_FOLDER, _identity(request.identity, row), option="out")


def _identity(whole: dict[str, Any], row: Row) -> dict[str, Any]:
    """All that one row depends on: options of other rows do not matter."""
    belongs = {"gcg": row.is_attacked, "perturbed": row == PERTURBED}
    return {k: v for k, v in whole.items() if belongs.get(k, True)}


def _file_name(row: Row) -> str:
    return row.benchmark.lower().replace(" ", "-")


def _rows_of_old_file(request: Request) -> dict[str, Measured]:
    """Rows that version 0.1.0 kept in `reproduce.json` alone, which knows models by name."""
    path = request.out / RESULTS
    if not path.is_file():
        return {}
    try:
        document = parse_json(path.read_text("utf-8"))
        rows = {} if "schema_version" in document else document["rows"]
        ours = (row for row in ROWS if row != PERTURBED or request.perturbed is None)
        kept = [row for row in ours if row.benchmark in rows]
        found = {row.benchmark: AS_JSON.validate_python(rows[row.benchmark]) for row in kept}
        olds = [_identity(document["order"], row) for row in kept]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: is damaged, or not a result ({error}); delete it") from error
    for old in olds:
        wanted = {name: request.identity.get(name) for name in old}
        if other := differences(old, wanted):
            raise UsageError(f"out: {path} belongs to other {', '.join(other)}; name a new folder")
    return found
