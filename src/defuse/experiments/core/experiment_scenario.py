"""From the fields of an experiment file to a scenario and its attacks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from defuse.evaluate.answers import Part
from defuse.evaluate.sources import Asking, TokenFiles, build_perturbation, load_part
from defuse.experiments.core.answers import (
    FORGET_SET,
    RETAIN_SET,
    slices_at,
)
from defuse.experiments.core.attacks import AttackPlan, attack_data
from defuse.experiments.core.experiment_file import Experiment, Grid, grids
from defuse.experiments.core.experiment_runs import make_runs, parts
from defuse.experiments.core.headlines import read_headlines
from defuse.experiments.core.job import folder_of
from defuse.experiments.core.questions import MCQuestions, make_probes
from defuse.experiments.core.scenario import Layout, ModelSource, Run, Scenario
from defuse.questions import Perturbation, Position
from defuse.utils.errors import UsageError, require
from defuse.utils.files import write_text


def make_scenario(
    experiment: Experiment,
    command: str = "",
    *,
    tune: bool = False,
    runs: Sequence[Run] | None = None,
) -> Scenario:
    """The scenario of an experiment file: its questions, tokens and runs.

    `command`: makes the experiment again. `tune`: the runs that try settings. `runs`: in place of
    those that the file compares.

    Raises UsageError for whatever cannot be read or does not go together.
    """
    output = folder_of(Path(experiment.output), tune=tune)
    read = _question_sets(experiment, tune=tune)
    sets = {name: part.questions for name, part in read.items()}
    settings = {name: part.settings for name, part in read.items()}
    perturbations = _perturbations(experiment)
    positions = [each.position for each in perturbations]
    used = grids(experiment, tune=tune) if runs is None else []
    mixing = _mixing_tokens(used, perturbations, output)
    if runs is None:
        runs = make_runs(experiment, used, output, mixing)

    def asked(limit: int | None, interim: Mapping[str, Any]) -> MCQuestions:
        places = interim.get("positions", positions)
        some = [each for each in perturbations if each.position in places]
        return MCQuestions(
            make_probes(sets, settings, perturbations, limit),
            make_probes(sets, settings, some, interim.get("questions")),
            experiment.text,
            late=make_probes(sets, settings, some, limit),
        )

    return Scenario(
        experiment.name,
        output,
        ModelSource(
            experiment.place(experiment.model),
            experiment.revision,
            experiment.device,
            experiment.dtype,
        ),
        tuple(runs),
        {
            **{g.questions: asked(g.limit, {**experiment.interim, **g.interim}) for g in used},
            "reported": asked(None, experiment.interim),
        },
        _layout(experiment, positions),
        command,
        retrained=experiment.optional_place(experiment.retrained),
        share_activations=True,
        keep_models=experiment.keep_models,
        mixing_tokens=mixing,
        headlines=_headlines(experiment),
    )


def _headlines(experiment: Experiment) -> Path | None:
    place = experiment.optional_place(experiment.headlines)
    path = None if place is None else Path(place)
    read_headlines(path)  # a broken file is refused before any work
    return path


def _question_sets(experiment: Experiment, *, tune: bool) -> dict[str, Part]:
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


def _load(experiment: Experiment, name: str, given: object) -> Part:
    """A question set and how it is asked; `given`: a source, or {source, subject}."""
    named: dict[str, Any] = given if isinstance(given, dict) else {"source": given}
    source = named.get("source")
    require(isinstance(source, str), f"questions.{name}", source, "is not a file or hub dataset")
    dev = experiment.optional_place(experiment.dev)
    asking = Asking(experiment.few_shot, experiment.limit, experiment.score, experiment.seed)
    return load_part(experiment.place(str(source)), named.get("subject"), dev, asking)


def _by_set(part: Part, names: Sequence[str]) -> dict[str, Part]:
    """Tuning questions of one file, told apart by their subject."""
    sets = {
        name: replace(part, questions=tuple(q for q in part.questions if q.subject == name))
        for name in names
    }
    empty = [name for name, some in sets.items() if not some.questions]
    if empty:
        raise UsageError(
            f"questions.tuning: no question has the subject {empty[0]!r}; give each row the "
            f"name of its set ({', '.join(names)}) as subject, or a file for each set"
        )
    return sets


def _check_apart(tuning: Mapping[str, Part], reported: Mapping[str, Part]) -> None:
    """Raise UsageError for a tuning question that is also reported."""
    seen = {(q.stem, q.choices) for part in reported.values() for q in part.questions}
    for question in (q for part in tuning.values() for q in part.questions):
        if (question.stem, question.choices) in seen:
            raise UsageError(
                f"questions.tuning: {question.id!r} is also reported; settings must be chosen on "
                "other questions"
            )


def _perturbations(experiment: Experiment) -> list[Perturbation]:
    given = experiment.perturb
    if given is None:
        return []
    require("forget_tokens" in given, "perturb.forget_tokens", None, "is missing; add it")
    tokens = TokenFiles(
        experiment.place(given["forget_tokens"]),
        experiment.optional_place(given.get("control_tokens")),
        experiment.optional_place(given.get("control_corpus")),
    )
    positions: list[Position] = given.get("positions", ["before"])
    sentence = given.get("sentence")
    alone = "is put before a question; add before to perturb.positions"
    require(sentence is None or "before" in positions, "perturb.sentence", sentence, alone)
    model, seed = experiment.place(experiment.model), experiment.seed
    return [
        build_perturbation(tokens, place, sentence if place == "before" else None, model, seed)
        for place in positions
    ]


def _mixing_tokens(
    grids: Sequence[Grid], perturbations: Sequence[Perturbation], output: Path
) -> tuple[str, ...]:
    """Write the forget-tokens that mixing uses: every second one, so that the others test it."""
    if not perturbations:
        return ()
    tokens = perturbations[0].tokens[::2]
    if any("mixing" in parts(given) for grid in grids for given in grid.defences):
        write_text(output / "texts" / "mixing_tokens.txt", "".join(f"{t}\n" for t in tokens))
    return tokens


def _layout(experiment: Experiment, positions: Sequence[str]) -> Layout:
    report = {"title": f"Experiment: {experiment.name}", **experiment.report}
    wanted = report.pop("positions", positions), experiment.interim.get("positions", positions)
    shown, matched = (tuple(p for p in positions if p in each) for each in wanted)
    return Layout(slices_at(shown), positions[0] if positions else None, matched, **report)


def attack_plan(experiment: Experiment, scenario: Scenario) -> AttackPlan | None:
    """The attacks that the file names, on the models of some seeds; None if it names none."""
    if not experiment.attacks:
        return None
    given, attacked = experiment.attacks, experiment.attacked
    seeds = attacked.get("seeds", [scenario.runs[0].seed])
    return AttackPlan(
        scenario.with_runs([run for run in scenario.runs if run.seed in seeds]),
        attack_data(scenario, attacked.get("forget"), attacked.get("retain")),
        tuple(given),
        {} if isinstance(given, list) else given,
    )
