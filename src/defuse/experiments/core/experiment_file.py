"""The fields of an experiment file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from defuse.recipes import shipped_recipe
from defuse.utils.config import parse, read_fields
from defuse.utils.errors import UsageError, require

# The fields of the mappings in an experiment file.
KNOWN = {
    "questions": {"forget", "retain", "tuning"},
    "compare": {"methods", "defences", "seeds"},
    "interim": {"questions", "positions"},
    "perturb": {"forget_tokens", "control_tokens", "control_corpus", "positions", "sentence"},
}


@dataclass(frozen=True)
class Experiment:
    """The fields of an experiment file.

    `texts`: corpora to forget and to retain; `topics`, as in a recipe, stands in place of them.
    `questions`: `forget`, `retain` (a source, or sources by name) and perhaps `tuning`; a source
    may be {source, subject}. `perturb`:
    `forget_tokens`, `control_tokens` or `control_corpus`, `positions`, `sentence`. `unlearn`:
    fields of a recipe for all methods; fields of its topic and of its method stand beside them.
    `compare`: `methods` (each with its own fields, or with the name of a `recipe`), `defences`,
    `seeds`. `checkpoints`: numbers of steps after which models are asked, besides the last.
    `interim`: what is asked before the last step (`questions` of each set, `positions`). `tune`:
    values to try, by method or defence. `limit`: questions of each set. `seed`: draws tokens and
    places. `text`: answers keep the questions' texts. `folder`: where relative paths are looked up
    first.
    """

    name: str
    output: str
    model: str
    questions: dict[str, Any]
    compare: dict[str, Any]
    texts: dict[str, Any] | None = None
    topics: list[dict[str, Any]] | None = None
    revision: str | None = None
    retrained: str | None = None
    score: Literal["letters", "cloze"] = "letters"
    few_shot: int = 0
    dev: str | None = None
    limit: int | None = None
    perturb: dict[str, Any] | None = None
    unlearn: dict[str, Any] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    interim: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    attacks: list[str] | dict[str, Any] = field(default_factory=list)
    keep_models: bool = False
    text: bool = True
    seed: int = 42
    device: str = "auto"
    dtype: str = "auto"
    folder: str = "."

    def place(self, source: str) -> str:
        """`source` seen from the experiment's file, where it is there; else as it is."""
        own = Path(self.folder) / source
        return str(own) if own.exists() else source

    def corpus(self, given: Any) -> Any:  # noqa: ANN401 (a source, or a corpus's fields)
        """The same for a corpus."""
        if isinstance(given, dict):
            return {**given, "source": self.place(str(given.get("source")))}
        return self.place(given) if isinstance(given, str) else given


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment file, or a shipped one by its name, with `field=value` overrides.

    Raises UsageError, naming the field, for the first thing wrong.
    """
    path = Path(path)
    file = path if path.is_file() else shipped_recipe(f"experiments/{path.as_posix()}")
    given = read_fields(file, overrides)
    experiment = parse(Experiment, {"folder": str(file.parent), **given})
    _check(experiment)
    return experiment


def _check(experiment: Experiment) -> None:
    for name, names in KNOWN.items():
        for given in getattr(experiment, name) or ():
            remedy = f"is not a field; it takes {', '.join(sorted(names))}"
            require(given in names, name, given, remedy)
    for name in ("forget", "retain"):
        require(name in experiment.questions, "questions", name, "is missing; add it")
    one = (experiment.texts is None) != (experiment.topics is None)
    require(one, "texts", experiment.texts, "and topics: give one of them")
    require(bool(experiment.compare.get("methods")), "compare.methods", None, "is missing; add it")
    if experiment.attacks and experiment.texts is None:
        raise UsageError("attacks: need texts; give texts instead of topics")
