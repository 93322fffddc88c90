"""The elements experiment on a tiny random model: its grid, files and questions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from defuse.experiments.core.answers import FORGET_TOKEN, Slice, pooled
from defuse.experiments.core.job import Request, run_experiment
from defuse.experiments.core.run import ExperimentContext, execute, load_answers, missing_steps
from defuse.experiments.core.scenario import Scenario
from defuse.experiments.core.tables import held_out
from defuse.experiments.elements.attacks import ASKED, attack_plan
from defuse.experiments.elements.facts import ELEMENTS
from defuse.experiments.elements.grid import Point, full_grid, short_grid, tuning_grid
from defuse.experiments.elements.questions import build_material
from defuse.experiments.elements.scenario import (
    LISTS,
    Options,
    make_questions,
    make_scenario,
    pair_terms,
    sets_of,
)
from defuse.questions import Perturbation, load_questions, load_tokens
from defuse.recipes import shipped_recipe
from defuse.unlearning.recipe import load_recipe
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer

SMALL = ("steps=6", "batch_size=2", "topics.0.forget_length=16", "topics.0.retain_length=16")
MATERIAL = build_material()
FEW = {name: questions[:3] for name, questions in MATERIAL.reported.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    build_llama(layers=8).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def point(rna: bool = False, method: str = "rmu", retain: str = "hidden_mse", mix: bool = False):
    return Point(method, retain, rna, seed=1, changes=SMALL, mix=mix)


def scenario(model: str, folder: Path, *points: Point) -> Scenario:
    """Some points of the grid, with few questions."""
    whole = make_scenario(Options(output=folder, model=model))
    runs = [each.run(model, folder) for each in points]
    terms = pair_terms(model)
    questions = make_questions(sets_of(FEW), terms)
    return replace(whole, questions=questions).with_runs(runs)


def test_runs_are_asked_along_the_way_and_reported(model: str, tmp_path: Path):
    points = [point(), point(rna=True), point(mix=True)]
    own = scenario(model, tmp_path, *points)
    assert run_experiment(own, Request()) == 0
    context = ExperimentContext(own)
    steps = load_answers(context, own.runs[0])
    assert tuple(steps) == (1, 2, 3, 4, 6)
    choice = Slice("retain", FORGET_TOKEN, "choice")
    assert {step for step, table in steps.items() if pooled(table, choice)} == {6}
    assert len(pooled(steps[2], Slice("retain", FORGET_TOKEN, "before"))) == 9
    for suffix in ("md", "csv", "tex", "png", "svg"):
        assert (tmp_path / f"main.{suffix}").stat().st_size > 100
    data = json.loads((tmp_path / "results.json").read_text("utf-8"))
    sets = {row["question_set"] for row in data["rows"]}
    assert sets == {"forget", "capitals", "cities", "states"}
    assert "Does mixing protect from forget-tokens" in (tmp_path / "main.md").read_text("utf-8")


def test_a_stopped_run_leaves_whole_files_and_ends_as_if_never_stopped(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def answers(folder: Path) -> dict[str, object]:
        files = sorted((folder / "answers").rglob("step-*.json"))
        return {file.name: json.loads(file.read_text("utf-8"))["result"] for file in files}

    stopped = ExperimentContext(scenario(model, tmp_path / "one", point(rna=True)))
    (run,) = stopped.scenario.runs
    original = ExperimentContext.ask

    def ask(context: ExperimentContext, *args: object, final: bool, **more: object):
        if final:
            raise KeyboardInterrupt
        return original(context, *args, final=final, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(ExperimentContext, "ask", ask)
        with pytest.raises(KeyboardInterrupt):
            execute(stopped, run)
    assert missing_steps(stopped, run) == (6,)
    before = answers(tmp_path / "one")
    execute(stopped, run)
    whole = answers(tmp_path / "one")
    assert {name: whole[name] for name in before} == before
    unbroken = ExperimentContext(scenario(model, tmp_path / "other", point(rna=True)))
    execute(unbroken, unbroken.scenario.runs[0])
    assert answers(tmp_path / "other") == whole


@pytest.mark.parametrize("method", ["adaptive_rmu", "rsv", "npo", "dpo", "simnpo"])
@pytest.mark.parametrize("retain", ["hidden_mse", "logit_kl", "logit_mse"])
def test_every_shipped_recipe_runs(model: str, tmp_path: Path, method: str, retain: str):
    short = replace(point(True, method, retain), changes=("steps=1", *SMALL[1:]))
    context = ExperimentContext(scenario(model, tmp_path, short))
    assert "error" not in execute(context, context.scenario.runs[0])
    assert set(load_answers(context, context.scenario.runs[0])) == {1}


def test_questions_and_tokens_are_written_as_evaluate_reads_them(model: str, tmp_path: Path):
    make_scenario(Options(output=tmp_path, model=model))
    for name, questions in MATERIAL.reported.items():
        found = load_questions(str(tmp_path / f"questions/{name}.jsonl"))
        assert found == tuple(replace(question, subject=None) for question in questions)
    terms = pair_terms(model)
    assert load_tokens(str(tmp_path / "terms/forget.txt")) == terms.forget
    assert load_tokens(str(tmp_path / "terms/controls.txt")) == terms.controls
    assert load_tokens(str(tmp_path / "texts/triggers.txt")) == terms.forget[::2]


def test_questions_behind_tokens_that_mixing_does_not_use_are_held_out(model: str, tmp_path: Path):
    own, terms = scenario(model, tmp_path), pair_terms(model)
    found = held_out(own)
    perturbation = Perturbation(terms.forget, "before", terms.controls)
    for name, questions in sets_of(FEW).items():
        for question in questions:
            replaced = perturbation.variants(question, 42)[FORGET_TOKEN].replaced
            assert replaced is not None
            wanted = name != "forget" and replaced.token not in terms.forget[::2]
            assert ((name, question.id) in found) == wanted
    assert held_out(replace(own, mixing_tokens=())) == set()


def test_the_grids_pair_each_seed_without_and_with_each_defence():
    assert {(p.seed, p.defence) for p in short_grid()} == {
        (seed, defence) for seed in (1, 2) for defence in ("none", "rna", "mixing")
    }
    assert {(p.method, p.retain) for p in short_grid()} == {("rmu", "hidden_mse")}
    points = full_grid()
    assert len(points) == len(set(points)) == 62
    assert len({(p.method, p.retain) for p in points}) == 18
    for pair in (("rmu", "hidden_mse"), ("simnpo", "logit_kl")):
        assert {p.seed for p in points if (p.method, p.retain) == pair} == {1, 2, 3, 4, 5}
    assert {p.questions for p in points} == {"reported", "fewer"} < set(LISTS)


def test_every_pair_is_tried_at_every_rate_and_answers_outlive_changed_recipes():
    grid = tuning_grid()
    assert len({(p.method, p.retain) for p in grid}) == 18
    for each in grid:
        fields = [change.partition("=")[0] for change in each.changes]
        assert fields[:2] == ["steps", "learning_rate"]
        assert each.rna == (fields[2:] == ["noise.std"])
        assert set(fields[2:]) <= {"noise.std", "topics.0.weight"}
        assert each.questions == "tuning"


def test_names_of_runs_differ_and_fit_a_folder():
    for points in (full_grid(), tuning_grid()):
        names = [each.name for each in points]
        assert len(set(names)) == len(names)
        assert not any(set("/ ") & set(name) for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(only=("rnu",)), "'rnu' is not a method"),
        (Options(full=True, tune=True), "does not go with full"),
        (Options(only=("npo",)), "has no run here; leave it out, or add --full"),
    ],
)
def test_options_are_checked_before_anything_runs(
    options: Options, message: str, model: str, tmp_path: Path
):
    with pytest.raises(UsageError, match=message):
        make_scenario(replace(options, output=tmp_path, model=model))


def test_shipped_recipes_name_their_own_file():
    for each in full_grid():
        recipe = load_recipe(shipped_recipe(f"smollm2/{each.method}-{each.retain}"))
        assert (recipe.method.name, recipe.retain.loss) == (each.method, each.retain)


def test_attacks_ask_some_elements_and_the_other_domains_in_turn(model: str, tmp_path: Path):
    plan = attack_plan(Options(output=tmp_path, model=model))
    assert [len(questions) for questions in plan.data.sets.values()] == list(ASKED)
    assert plan.data.settings.score == "cloze"
    assert [q.subject for q in plan.data.retain[:3]] == ["capitals", "cities", "states"]
    assert all(q.subject == ELEMENTS for q in plan.data.forget)
    names = [run.name for run in plan.scenario.runs]
    assert plan.pairs() == [(names[0], names[1])]
    full = attack_plan(Options(output=tmp_path, model=model, full=True))
    assert len(full.scenario.runs) == 8
