"""The fields of an experiment file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from defuse.questions import Position
from defuse.recipes import shipped_recipe
from defuse.utils.config import (
    Count,
    Natural,
    as_mapping,
    check_fields,
    parse,
    parse_value,
    read_fields,
    set_fields,
)
from defuse.utils.errors import UsageError, require

Named = str | dict[str, str | None]  # a source, or {source, subject}
Sets = Named | dict[str, Named]
# The fields of the mappings in an experiment file, and their types.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "questions": {"forget": Named, "retain": Sets, "tuning": Sets},
    "interim": {"questions": Count, "positions": list[Position]},
    "perturb": {
        "forget_tokens": str,
        "control_tokens": str | None,
        "control_corpus": str | None,
        "positions": list[Position],
        "sentence": str | None,
    },
    "attacked": {"seeds": list[int], "forget": Count, "retain": Count},
    "report": {
        "title": str,
        "reading": str,
        "stem": str,
        "subfolder": str,
        "positions": list[Position],
    },
}
# Defences, and what may be said of them.
DEFENCE_FIELDS = {"rna": ("std", "variance"), "mixing": ("share", "tokens")}
TUNING_SEED = 1000  # of tuning runs: no report uses it


@dataclass(frozen=True)
class Grid:
    """Runs: methods, retain losses, values of fields, defences and seeds, each with each.

    `methods`: names, or fields by name. `retain`: retain losses; none is each method's own.
    `values`: values to try, by field. `names`: a pattern for the names of runs. `checkpoints`,
    `limit` and `interim` stand in place of the experiment's.
    """

    methods: list[str] | dict[str, dict[str, Any] | None]
    retain: list[str] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)
    defences: list[Any] = field(default_factory=lambda: ["none"])
    seeds: list[int] = field(default_factory=lambda: [0])
    names: str = "{name}{defence}-seed{seed}"
    checkpoints: tuple[Any, ...] | None = None
    limit: Count | None = None
    interim: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "compare")

    @property
    def questions(self) -> str:
        """The name of the questions that its runs are asked."""
        own = self.limit is not None or bool(self.interim)
        return f"{self.limit}, {self.interim}" if own else "reported"


@dataclass(frozen=True)
class Experiment:
    """The fields of an experiment file.

    `texts`: corpora to forget and to retain; `topics`, as in a recipe, stands in place of them.
    `questions`: `forget`, `retain` (a source, or sources by name) and perhaps `tuning`; a source
    may be {source, subject}. `perturb`:
    `forget_tokens`, `control_tokens` or `control_corpus`, `positions`, `sentence`. `unlearn`:
    fields of a recipe for all methods; fields of its topic and of its method stand beside them.
    `compare`: a grid of runs, or several. `checkpoints`: numbers of steps, or shares of them, after
    which models are asked, besides the last. `interim`: what is asked before the last quarter
    (`questions` of each set, `positions`). `tune`: values to try, by method or defence, or grids of
    their own. `attacks`: names of attacks, or settings by name; `attacked`: which models (`seeds`)
    and how many questions (`forget`, `retain`). `report`: `title`, `reading`, `positions`, and the
    name (`stem`) and `subfolder` of its files. `headlines`: a file of published conclusions with
    their figures (`core.headlines`), to which every run is compared. `limit`: questions of each
    set. `seed`: draws tokens and places. `text`: answers keep the questions' texts. `folders`:
    where relative paths are looked up first.
    """

    name: str
    output: str
    model: str
    questions: dict[str, Any]
    compare: dict[str, Any] | list[dict[str, Any]]
    texts: dict[str, Any] | None = None
    topics: list[dict[str, Any]] | None = None
    revision: str | None = None
    retrained: str | None = None
    score: Literal["letters", "cloze"] = "letters"
    few_shot: Natural = 0
    dev: str | None = None
    limit: Count | None = None
    perturb: dict[str, Any] | None = None
    unlearn: dict[str, Any] = field(default_factory=dict)
    checkpoints: tuple[int | float | str, ...] = ()
    interim: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] | list[dict[str, Any]] = field(default_factory=dict)
    attacks: list[str] | dict[str, Any] = field(default_factory=list)
    attacked: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    headlines: str | None = None
    keep_models: bool = False
    text: bool = True
    seed: int = 42
    device: str = "auto"
    dtype: str = "auto"
    folders: tuple[str, ...] = (".",)

    def __post_init__(self) -> None:
        check_fields(self)

    def place(self, source: str) -> str:
        """`source` seen from the experiment's file, where it is there; else as it is."""
        places = (Path(folder) / source for folder in self.folders)
        return next((str(place) for place in places if place.exists()), source)

    def optional_place(self, source: str | None) -> str | None:
        """The same of a source that may be missing."""
        return None if source is None else self.place(source)

    def corpus(self, given: Any) -> Any:  # noqa: ANN401 (a source, or a corpus's fields)
        """The same for a corpus."""
        if isinstance(given, dict):
            return {**given, "source": self.place(str(given.get("source")))}
        return self.place(given) if isinstance(given, str) else given


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment file, or a shipped one by its name, with `field=value` overrides.

    Raises UsageError, naming the field, for the first thing wrong.
    """
    given = _read(Path(path))
    set_fields(given, overrides)
    experiment = parse(Experiment, given)
    _check(experiment)
    return experiment


def _read(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a file, filled up with those of the experiment that it `extends`."""
    file = path if path.is_file() else shipped_recipe(f"experiments/{path.as_posix()}")
    require(file not in extended_by, "extends", str(file), "leads back to itself; leave it out")
    given = {"folders": [str(file.parent)], **read_fields(file)}
    name = given.pop("extends", None)
    if name is None:
        return given
    files = (*extended_by, file)
    beside = file.parent / f"{str(name).removesuffix('.yaml')}.yaml"
    base = _read(beside if beside.is_file() and beside not in files else Path(str(name)), files)
    given["folders"] += base["folders"]
    return {**base, **{field_: _merged(base.get(field_), v) for field_, v in given.items()}}


def _merged(base: object, given: object) -> object:
    """A mapping is filled up from that of `base`; anything else stands in its place."""
    return {**base, **given} if isinstance(base, dict) and isinstance(given, dict) else given


def grids(experiment: Experiment, *, tune: bool) -> list[Grid]:
    """The grids of `compare`, or of the runs that try settings."""
    compared, values = _grids("compare", experiment.compare), experiment.tune
    if not tune:
        return compared
    if isinstance(values, list):
        return _grids("tune", values)
    return [each for grid in compared for each in _tuning_grids(grid, values)]


def _grids(name: str, given: dict[str, Any] | list[dict[str, Any]]) -> list[Grid]:
    if isinstance(given, dict):
        return [parse(Grid, given, name)]
    return [parse(Grid, each, f"{name}.{place}") for place, each in enumerate(given)]


def _tuning_grids(grid: Grid, tune: Mapping[str, Any]) -> Iterator[Grid]:
    """Each method as it is, with all values of the defences; then each with its own values."""
    methods = grid.methods if isinstance(grid.methods, dict) else dict.fromkeys(grid.methods)
    defences = [{name: tune[name]} for name in DEFENCE_FIELDS if name in tune]
    for name, own in methods.items():
        alone = replace(grid, methods={name: own}, defences=["none"], seeds=[TUNING_SEED])
        yield replace(alone, defences=["none", *defences])
        if values := tune.get(name):
            yield replace(alone, values=parse_value(dict[str, list[Any]], values, f"tune.{name}"))


def _check(experiment: Experiment) -> None:
    for name in KNOWN:
        _check_mapping(name, getattr(experiment, name) or {})
    for name in ("forget", "retain"):
        require(name in experiment.questions, "questions", name, "is missing; add it")
    one = (experiment.texts is None) != (experiment.topics is None)
    require(one, "texts", experiment.texts, "and topics: give one of them")
    for grid in grids(experiment, tune=False):
        require(bool(grid.methods), "compare.methods", grid.methods, "holds no method; name one")
        _check_mapping("interim", grid.interim)
    if experiment.attacks and experiment.texts is None:
        raise UsageError("attacks: need texts; give texts instead of topics")


def _check_mapping(name: str, given: Mapping[str, Any]) -> None:
    for field_, value in as_mapping(given, KNOWN[name], name).items():
        parse_value(KNOWN[name][field_], value, f"{name}.{field_}")
