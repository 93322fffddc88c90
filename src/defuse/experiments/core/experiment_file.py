"""An experiment file: from YAML to a scenario."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from defuse.attacks.data import AttackData
from defuse.evaluate import Settings
from defuse.evaluate.sources import TokenFiles, build_perturbation, few_shot_examples
from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_SET,
    FORGET_TOKEN,
    RETAIN,
    RETAIN_SET,
    QuestionKey,
    Slice,
)
from defuse.experiments.core.attacks import AttackPlan
from defuse.experiments.core.experiment_runs import make_runs, parts
from defuse.experiments.core.job import folder_of
from defuse.experiments.core.questions import MCQuestions, QuestionSets, make_probes
from defuse.experiments.core.scenario import Layout, ModelSource, Scenario
from defuse.questions import Perturbation, Position, Question, load_questions
from defuse.recipes import shipped_recipe
from defuse.utils.config import parse, read_fields
from defuse.utils.errors import UsageError, require
from defuse.utils.files import write_text

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
    `questions`: `forget`, `retain` (a source, or sources by name) and perhaps `tuning`. `perturb`:
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

    def scenario(self, command: str = "", *, tune: bool = False) -> Scenario:
        """Read the questions and tokens, and make every run; `tune`: those that try settings.

        Raises UsageError for whatever cannot be read or does not go together.
        """
        output = folder_of(Path(self.output), tune=tune)
        sets = _question_sets(self, tune=tune)
        perturbations = _perturbations(self)
        mixing = _mixing_tokens(self, perturbations, output)
        runs = tuple(make_runs(self, output, mixing, tune=tune))
        interim = [each for each in perturbations if each.position in _interim_positions(self)]
        settings = {name: _settings(self, name, questions) for name, questions in sets.items()}
        limit = self.interim.get("questions")
        asked = MCQuestions(
            make_probes(sets, settings, perturbations),
            make_probes(sets, settings, interim, limit),
            self.text,
        )
        return Scenario(
            self.name,
            output,
            ModelSource(self.place(self.model), self.revision, self.device, self.dtype),
            runs,
            {"reported": asked},
            _layout(self, perturbations, interim),
            command,
            retrained=None if self.retrained is None else self.place(self.retrained),
            share_activations=True,
            keep_models=self.keep_models,
            held_out=_held_out(sets, perturbations, mixing, self.seed),
        )

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


def _question_sets(experiment: Experiment, *, tune: bool) -> QuestionSets:
    given = experiment.questions
    retain = given["retain"]
    sources = {FORGET_SET: given["forget"]}
    sources |= retain if isinstance(retain, dict) else {RETAIN_SET: retain}
    reported = {name: _load(experiment, name, source) for name, source in sources.items()}
    if not tune:
        return reported
    require("tuning" in given, "questions.tuning", None, "is missing; --tune needs it")
    tuning = given["tuning"]
    if isinstance(tuning, dict):
        sets = {name: _load(experiment, name, tuning.get(name)) for name in reported}
    else:
        sets = _by_set(_load(experiment, "tuning", tuning), tuple(reported))
    _check_apart(sets, reported)
    return sets


def _load(experiment: Experiment, name: str, source: object) -> tuple[Question, ...]:
    require(isinstance(source, str), f"questions.{name}", source, "is not a file or hub dataset")
    return load_questions(experiment.place(str(source)), limit=experiment.limit)


def _by_set(questions: Sequence[Question], names: Sequence[str]) -> QuestionSets:
    """Tuning questions of one file, told apart by their subject."""
    sets = {name: tuple(q for q in questions if q.subject == name) for name in names}
    empty = [name for name, some in sets.items() if not some]
    if empty:
        raise UsageError(
            f"questions.tuning: no question has the subject {empty[0]!r}; give each row the "
            f"name of its set ({', '.join(names)}) as subject, or a file for each set"
        )
    return sets


def _check_apart(tuning: QuestionSets, reported: QuestionSets) -> None:
    """Raise UsageError for a tuning question that is also reported."""
    seen = {(q.stem, q.choices) for questions in reported.values() for q in questions}
    for question in (q for questions in tuning.values() for q in questions):
        if (question.stem, question.choices) in seen:
            raise UsageError(
                f"questions.tuning: {question.id!r} is also reported; settings must be chosen on "
                "other questions"
            )


def _settings(experiment: Experiment, name: str, questions: Sequence[Question]) -> Settings:
    dev = None if experiment.dev is None else experiment.place(experiment.dev)
    examples = few_shot_examples(dev, experiment.few_shot, None)
    leaked = {q.stem for q in questions} & {q.stem for q in examples}
    require(not leaked, f"questions.{name}", min(leaked, default=""), "is also an example of dev")
    return Settings(experiment.score, None, examples, experiment.seed)


def _perturbations(experiment: Experiment) -> list[Perturbation]:
    given = experiment.perturb
    if given is None:
        return []
    require("forget_tokens" in given, "perturb.forget_tokens", None, "is missing; add it")
    files = {
        name: given.get(name) for name in ("forget_tokens", "control_tokens", "control_corpus")
    }
    places = {n: None if f is None else experiment.place(str(f)) for n, f in files.items()}
    tokens = TokenFiles(
        str(places["forget_tokens"]), places["control_tokens"], places["control_corpus"]
    )
    positions: list[Position] = given.get("positions", ["before"])
    model = experiment.place(experiment.model)
    return [
        build_perturbation(
            tokens,
            position,
            given.get("sentence") if position == "before" else None,
            model,
            experiment.seed,
        )
        for position in positions
    ]


def _interim_positions(experiment: Experiment) -> Sequence[str]:
    every = (experiment.perturb or {}).get("positions", ["before"])
    return experiment.interim.get("positions", every)


def _mixing_tokens(
    experiment: Experiment, perturbations: Sequence[Perturbation], output: Path
) -> tuple[str, ...]:
    """Write the forget-tokens that mixing uses: every second one, so that the others test it."""
    if not perturbations:
        return ()
    tokens = perturbations[0].tokens[::2]
    if any("mixing" in parts(given) for given in experiment.compare.get("defences", ["none"])):
        write_text(output / "texts" / "mixing_tokens.txt", "".join(f"{t}\n" for t in tokens))
    return tokens


def _held_out(
    sets: QuestionSets, perturbations: Sequence[Perturbation], used: Sequence[str], seed: int
) -> frozenset[QuestionKey]:
    """The questions behind a forget-token, at the first position, that mixing does not use."""
    return frozenset(
        (name, question.id)
        for perturbation in perturbations[:1]
        for name, questions in sets.items()
        if name != FORGET_SET
        for question in questions
        for found in [perturbation.variants(question, seed)[FORGET_TOKEN].replaced]
        if found is not None and found.token not in used
    )


def _layout(
    experiment: Experiment, perturbations: Sequence[Perturbation], interim: Sequence[Perturbation]
) -> Layout:
    places = [each.position for each in perturbations]
    perturbed = [
        Slice("retain", variant, place)
        for place in places
        for variant in (CONTROL_TOKEN, FORGET_TOKEN)
    ]
    return Layout(
        (FORGET, RETAIN, *perturbed),
        places[0] if places else None,
        tuple(each.position for each in interim),
        title=f"Experiment: {experiment.name}",
    )


def attack_plan(experiment: Experiment, scenario: Scenario) -> AttackPlan | None:
    """The attacks that the file names, on the models of the first seed; None if it names none."""
    if not experiment.attacks:
        return None
    given = experiment.attacks
    settings = {} if isinstance(given, list) else given
    topics = [topic.build() for topic in scenario.runs[0].recipe.topics]
    probes = scenario.questions["reported"].final
    prompts = [prompt for probe in probes for group in probe.groups for prompt in group]
    original = [(cell, question) for cell, question in prompts if cell.position is None]
    sets = {
        is_forget: {
            q.id: q for cell, q in original if (cell.question_set == FORGET_SET) == is_forget
        }
        for is_forget in (True, False)
    }
    data = AttackData(
        tuple(sets[True].values()),
        tuple(sets[False].values()),
        probes[0].settings,
        tuple(str(text) for topic in topics for text in topic.forget),
        tuple(str(text) for topic in topics for text in topic.retain),
    )
    seed = scenario.runs[0].seed
    return AttackPlan(
        scenario.with_runs([run for run in scenario.runs if run.seed == seed]),
        data,
        tuple(given),
        tuple(
            f"{name}.{field_}={value}"
            for name, own in settings.items()
            for field_, value in (own or {}).items()
        ),
    )
