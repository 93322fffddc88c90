"""The synthetic experiment: its grid, questions and texts, and `defuse lab` on shipped models."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from defuse.cli import app
from defuse.data.text import Triggered
from defuse.data.trigger_mixing import mix_triggers
from defuse.experiments.core.answers import FORGET, pooled, slices
from defuse.experiments.core.job import Request, check_knowledge, run_experiment, runs_to_do
from defuse.experiments.core.questions import MCQuestions
from defuse.experiments.core.run import (
    ExperimentContext,
    answers_store,
    execute,
    load_answers,
    missing_steps,
    other_answers,
    step_name,
)
from defuse.experiments.core.scenario import Scenario
from defuse.experiments.synthetic.grid import (
    SETTINGS,
    Point,
    Setting,
    attack_grid,
    full_grid,
    short_grid,
    tuning_grid,
)
from defuse.experiments.synthetic.questions import make_questions
from defuse.experiments.synthetic.scenario import (
    KNOWN,
    REFUSED,
    Options,
    attack_plan,
    make_scenario,
)
from defuse.methods import METHODS, RETAIN_LOSSES
from defuse.synthetic.models import SHIPPED, load_pair, missing, teach_pair
from defuse.synthetic.questions import split
from defuse.synthetic.world import build_world
from defuse.unlearning.recipe_identity import TextDigests
from defuse.unlearning.train import unlearn
from defuse.utils.errors import UsageError
from defuse.utils.runner import Runner
from tests.helpers.answered import answers

WORLD = build_world(size=8)
SHORT = Point(("rmu", "hidden_mse"), 0, tried=Setting(steps=4, learning_rate=1e-3))
DEFENCES = {"none", "rna", "mixing", "rna+mixing"}


def scenario(tmp_path: Path, *points: Point) -> Scenario:
    """Some points of the grid on the shipped models, with every sixth prompt."""
    whole = make_scenario(Options(output=tmp_path))
    runs = [point.run(whole.model.name, tmp_path) for point in points]
    final, interim = (
        tuple(replace(p, groups=p.groups[::6]) for p in whole.questions["reported"].probes(stage))
        for stage in ("final", "interim")
    )
    asked = MCQuestions(final, interim, keep_text=False)
    return replace(whole, questions={"reported": asked}).with_runs(runs)


@pytest.mark.parametrize("part", ["reported", "tuning"])
def test_the_shipped_models_know_the_world_but_for_the_domain_of_one(tmp_path: Path, part: str):
    options = Options(output=tmp_path, tune=part == "tuning")
    context = ExperimentContext(make_scenario(options))
    reference, retrained = (other_answers(context, name) for name in ("reference", "retrained"))
    assert check_knowledge(reference, (REFUSED, KNOWN)) == []
    shares = {
        part: sum(a.correct for a in pooled(retrained, part).values())
        / len(pooled(retrained, part))
        for part in slices(retrained)
    }
    assert shares.pop(FORGET) < 0.4
    assert min(shares.values()) > 0.95


def test_the_experiment_runs_in_processes_reports_and_does_nothing_twice(tmp_path: Path):
    points = [SHORT, replace(SHORT, rna="1x")]
    request = Request(runner=Runner("processes", 2))
    run_experiment(scenario(tmp_path, *points), request)
    data = json.loads((tmp_path / "results.json").read_text("utf-8"))
    rows = {(r["model"], r["question_set"]): r["accuracy"] for r in data["rows"]
            if r["variant"] == "original"}  # fmt: skip
    assert rows["retrained", "forget"] < 0.4 < rows["retrained", "retain"]
    files = sorted((tmp_path / "answers").rglob("*.json"))
    times = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 2 + 2 * 4  # reference and retrained, and four checkpoints a run
    again = scenario(tmp_path, *points)
    run_experiment(again, Request(report=True))
    assert [path.stat().st_mtime_ns for path in files] == times
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "forgetting pathogens" in page
    groups = {g["label"]: g for g in data["summary"]["groups"]}
    plain, defended = (run.group for run in again.runs)
    assert list(groups) == ["reference", "retrained", plain, defended]
    assert set(groups[plain]["vulnerability"]) == {"choice", "stem", "before", "statement"}
    assert set(groups[plain]["kl_to_retrained"]) == {"forget/original", "retain/original"}


def test_answers_of_version_0_1_0_are_read_and_others_refused(tmp_path: Path):
    """Its files spell variants otherwise and name the setting; base.json is the reference's."""
    context = ExperimentContext(scenario(tmp_path, SHORT))
    execute(context, context.scenario.runs[0])
    (run,) = context.scenario.runs
    store = answers_store(context, run, 4)
    cells = json.loads(store.path(step_name(4)).read_text("utf-8"))["result"]
    names = {"forget_token": "forget", "control_token": "control", "mixed_token": "mixed"}
    old = {
        (f"{c['position']}/{names.get(c['variant'], 'unseen')}" if c["position"] else
         "forget" if c["question_set"] == "forget" else "clean"): {
            name: [a["correct"], a["logprob"], a["logprobs"]] for name, a in c["answers"].items()
        }
        for c in cells
    }  # fmt: skip
    expected = load_answers(context, run)
    setting = dict(run.essence)["setting"]
    document = {"run": {}, "setting": setting, "step": 4, "answers": old}
    store.path(step_name(4)).write_text(json.dumps(document))
    assert load_answers(context, run) == expected
    assert not runs_to_do(context, retry_failed=False)  # it had no records beside its answers
    reference = tmp_path / "answers" / "base.json"
    reference.write_text(json.dumps({"model": "base", "answers": old}))
    assert other_answers(context, "reference") == expected[4]
    document["setting"] = {**setting, "weight": 3.0}
    store.path(step_name(4)).write_text(json.dumps(document))
    with pytest.raises(UsageError, match="belongs to other setting; name a new folder"):
        missing_steps(context, run)


@pytest.mark.parametrize("method", ["rmu", "adaptive_rmu", "rsv", "npo", "dpo", "simnpo"])
@pytest.mark.parametrize("retain", ["hidden_mse", "logit_kl", "logit_mse"])
def test_every_pair_is_a_recipe_that_trains_with_noise_and_mixing(
    method: str, retain: str, tmp_path: Path
):
    own = scenario(tmp_path, Point((method, retain), 0, "1x", 0.5, Setting(steps=1)))
    recipe, reference = own.runs[0].recipe, ExperimentContext(own).reference
    topics = [topic.build() for topic in recipe.topics]
    how = (topics, recipe.unlearning(), recipe.training())
    result = unlearn(reference.model, reference.tokenizer, *how)
    assert all(tensor.isfinite().all() for tensor in result.changed.values())


def test_mixed_retain_texts_name_only_what_may_be_mixed():
    parts = split(WORLD, "animals")
    texts = parts.texts()
    mixed = mix_triggers(texts["retain"], texts["mixing"], 0.5, 0, "lab")
    named = " ".join(text.sentence for text in mixed if isinstance(text, Triggered))
    assert any(name in named for name in parts.mixed)
    assert not any(name in named for name in parts.held_out)
    assert not any(name in " ".join(texts["retain"]) for name in WORLD.subjects["animals"])


def test_checkpoints_answer_fewer_prompts_than_the_last_step():
    asked = make_questions(WORLD, "animals", "reported")
    final, interim = (
        {cell for probe in asked.probes(stage) for group in probe.groups for cell, _ in group}
        for stage in ("final", "interim")
    )
    assert {cell.position for cell in final} == {None, "choice", "stem", "before", "statement"}
    assert {cell.position for cell in interim} == {None, "before", "statement"}
    assert ("retain", "unseen_token", "statement") not in final
    assert len(final) == 2 + 4 * 4 - 1


def test_grids_hold_every_defence_and_names_tell_runs_apart():
    folder = Path("lab")
    short = [point.run("base", folder) for point in short_grid()]
    assert {run.defence for run in short} == DEFENCES
    assert {run.method for run in short} == {"rmu", "simnpo"}
    assert short[3].name == "rmu-hidden_mse-rna10x-mixed0.1-seed0"
    assert short[3].group == "rmu + hidden_mse, rna 10x + mixing 0.1"
    full = full_grid()
    assert len({p.run("base", folder).name for p in full}) == len(full) == 18 * 7 * 10
    assert set(short_grid()) <= set(full)
    # Three seeds of every pair's three defences, with those of both defences in the short grid's
    # two; then seven more seeds of RMU's three.
    assert {p.seed for p in full[: 18 * 3 * 3 + 2 * 3]} == {0, 1, 2}
    rest = full[18 * 3 * 3 + 2 * 3 :]
    assert all(p.pair == ("rmu", "hidden_mse") for p in rest[: 7 * 3])
    assert len({p.pair for p in rest[7 * 3 :]}) == 18
    assert SHORT.run("base", folder).name != replace(SHORT, tried=None).run("base", folder).name


def test_tuning_changes_settings_and_uses_no_report_s_seed():
    grid = tuning_grid()
    # Nine of each pair, six of NPO's and DPO's, eighteen of SimNPO's; RMU's layers are twenty, of
    # which two are among its nine; two pairs with four noises and four shares each.
    names = {point.run("base", Path("lab")).name for point in grid}
    assert len(names) == len(grid) == 9 * 9 + 3 * 18 + 6 * 6 + 20 - 2 + 2 * (4 + 4)
    settings = {p.tried for p in grid if p.pair == ("rmu", "hidden_mse")}
    assert {setting.layer for setting in settings if setting} == {1, 2, 3, 4, 5}
    assert len({p.tried for p in grid if p.pair == ("npo", "logit_kl")}) == 6
    assert {p.seed for p in grid}.isdisjoint({p.seed for p in full_grid()})


def test_a_reference_model_that_knows_too_little_is_refused():
    assert check_knowledge(answers(), (0.9, 0.97)) == []
    with pytest.raises(UsageError, match=r"answers 0\.80 of the questions 'retain, after a forget"):
        check_knowledge(answers(before_forget=8), (0.9, 0.97))
    (caution,) = check_knowledge(answers(100, before_control=95), (0.9, 0.97))
    assert caution.endswith("answers 0.95 of the questions 'retain, after a control token' and "
                            "should answer 0.97.")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(forget="plants"), "forget: 'plants' is no domain of this world"),
        (Options(only=("rmuu",)), "only: 'rmuu' is not a method; use"),
        (Options(only=("npo",)), "only: npo has no run here; leave it out, or add --full"),
        (Options(full=True, tune=True), "tune: does not go with full"),
        (Options(size=2), "size: 2 subjects a domain; give 4 to"),
        (Options(domains=("animal",)), "domain: 'animal' is none; use people, countries"),
        (Options(domains=("animals", "people")), "domains: 2 of them; give three or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: Options, message: str, tmp_path: Path
):
    with pytest.raises(UsageError, match=message):
        make_scenario(replace(options, output=tmp_path))


def test_other_worlds_have_folders_and_models_of_their_own(tmp_path: Path):
    options = Options(output=tmp_path)
    assert (options.folder, options.models) == (tmp_path, SHIPPED)
    assert replace(options, tune=True).folder == tmp_path / "tuning"
    animals = replace(options, seed=5, forget="animals")
    assert animals.folder == tmp_path / "animals-seed5"
    assert animals.models == tmp_path / "models" / "animals-seed5"
    other = replace(animals, size=8, domains=("people", "animals", "countries"))
    assert other.models.name == "animals-seed5-size8-people-animals-countries"


def test_models_are_trained_once_and_saved_small(tmp_path: Path):
    assert missing(tmp_path) == ["base", "gold"]
    teach_pair(WORLD, "animals", tmp_path, steps=2)
    assert missing(tmp_path) == []
    reference, retrained = load_pair(tmp_path)
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    assert size < 2.2 * reference.model.num_parameters()
    pairs = zip(reference.model.parameters(), retrained.model.parameters(), strict=True)
    assert not all(one.equal(other) for one, other in pairs)


def test_a_plan_says_what_would_run_and_runs_nothing(tmp_path: Path):
    for options, count in (([], 24), (["--full"], 1260)):
        given = ["lab", "--plan", "--output", str(tmp_path), *options]
        found = CliRunner().invoke(app, given, catch_exceptions=False)
        assert found.exit_code == 0, found.output
        assert f"{count} of {count} runs to do: about" in found.output
    assert not list(tmp_path.rglob("step-*.json"))


def test_attacks_are_planned_for_the_pair_and_runs_without_and_with_noise(tmp_path: Path):
    plan = attack_plan(Options(output=tmp_path))
    assert list(plan.requests())[:2] == ["reference", "retrained"]
    names = [run.name for run in plan.scenario.runs]
    assert plan.pairs() == [(names[0], names[1]), (names[2], names[3])]
    assert [len(questions) for questions in plan.data.sets.values()] == [54, 135]
    assert {point.seed for point in attack_grid(full=True)} == {0, 1, 2}
    with pytest.raises(UsageError, match="leave out --tune or --attacks"):
        attack_plan(Options(output=tmp_path, tune=True))
    given = ["lab", "--attacks", "--plan", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    assert "6 of 6 models to attack" in result.output
    assert not list(tmp_path.glob("attacks/*"))


def test_every_method_has_a_setting_with_every_retain_loss():
    assert set(SETTINGS) == set(product(METHODS, RETAIN_LOSSES))


def test_the_same_texts_have_the_same_digest_as_in_earlier_versions(tmp_path: Path):
    """Else every answer that is kept on a disk would be refused."""
    (run, *_) = make_scenario(Options(output=tmp_path)).runs
    digest = "6253f3ef55d33423f7279b6b6d5812ca44c6c7f9273d45fe816af7174be73beb"
    assert TextDigests().of(run.recipe) == digest
