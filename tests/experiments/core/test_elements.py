"""The shipped experiments `elements…`, as `defuse real` runs them, on a tiny random model."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from defuse.cli import app
from defuse.experiments.core.answers import FORGET_TOKEN, Slice, pooled
from defuse.experiments.core.attacks import AttackPlan
from defuse.experiments.core.experiment_file import load_experiment
from defuse.experiments.core.experiment_scenario import attack_plan, make_scenario
from defuse.experiments.core.job import Request, run_experiment
from defuse.experiments.core.questions import Stage
from defuse.experiments.core.run import ExperimentContext, execute, load_answers, missing_steps
from defuse.experiments.core.scenario import Scenario
from defuse.experiments.core.tables import held_out
from defuse.methods import METHODS, RETAIN_LOSSES
from defuse.models.load import LoadedModel
from defuse.questions import Perturbation, load_questions, load_tokens
from defuse.recipes import FOLDER
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer

LENGTHS = ("unlearn.forget_length=16", "unlearn.retain_length=16")
DATA = FOLDER / "experiments" / "elements"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    build_llama(layers=8).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides for few short steps, the first few texts and few questions."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("forget", "retain"):
        lines = (DATA / f"texts/{name}.txt").read_text("utf-8").splitlines()[:8]
        (folder / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    texts = f"texts={{forget: {folder}/forget.txt, retain: {folder}/retain.txt}}"
    return (texts, "unlearn.steps=6", "unlearn.batch_size=2", "limit=3", *LENGTHS)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scenario(
    name: str = "elements", *overrides: str, model: str = "nobody/nothing", tune: bool = False
) -> Scenario:
    experiment = load_experiment(name, [f"model={model}", *overrides])
    return make_scenario(experiment, tune=tune)


def attacked(name: str) -> AttackPlan:
    experiment = load_experiment(name, ["model=nobody/nothing"])
    plan = attack_plan(experiment, make_scenario(experiment))
    assert plan is not None
    return plan


def real(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["real", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_runs_are_asked_along_the_way_and_reported(
    model: str, small: tuple[str, ...], tmp_path: Path
):
    own = scenario("elements", *small, "output=out", "compare.seeds=[1]", model=model)
    assert run_experiment(own, Request()) == 0
    steps = load_answers(ExperimentContext(own), own.runs[0])
    assert tuple(steps) == (1, 2, 3, 6)
    choice = Slice("retain", FORGET_TOKEN, "choice")
    assert {step for step, table in steps.items() if pooled(table, choice)} == {6}
    assert len(pooled(steps[2], Slice("retain", FORGET_TOKEN, "before"))) == 9
    for suffix in ("md", "csv", "tex", "png", "svg"):
        assert (tmp_path / f"out/main.{suffix}").stat().st_size > 100
    data = json.loads((tmp_path / "out/results.json").read_text("utf-8"))
    assert {r["question_set"] for r in data["rows"]} == {"forget", "capitals", "cities", "states"}
    table = (tmp_path / "out/main.md").read_text("utf-8")
    assert "Does mixing protect from forget-tokens" in table
    assert "| rmu + hidden_mse, rna 3x |" in table


def test_a_stopped_run_leaves_whole_files_and_ends_as_if_never_stopped(
    model: str, small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def context(output: str) -> ExperimentContext:
        whole = scenario("elements", *small, f"output={output}", model=model)
        return ExperimentContext(whole.with_runs(whole.runs[1:2]))

    def answers(folder: Path) -> dict[str, object]:
        files = sorted((folder / "answers").rglob("step-*.json"))
        return {file.name: json.loads(file.read_text("utf-8"))["result"] for file in files}

    stopped = context("one")
    (run,) = stopped.scenario.runs
    original = ExperimentContext.ask

    def ask(
        context: ExperimentContext, loaded: LoadedModel, name: str, stage: Stage, **more: object
    ):
        if stage == "final":
            raise KeyboardInterrupt
        return original(context, loaded, name, stage, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(ExperimentContext, "ask", ask)
        with pytest.raises(KeyboardInterrupt):
            execute(stopped, run)
    assert missing_steps(stopped, run) == (6,)
    before = answers(tmp_path / "one")
    execute(stopped, run)
    whole = answers(tmp_path / "one")
    assert {name: whole[name] for name in before} == before
    unbroken = context("other")
    execute(unbroken, unbroken.scenario.runs[0])
    assert answers(tmp_path / "other") == whole


@pytest.fixture(scope="module")
def every_pair(
    model: str, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> ExperimentContext:
    """One step of each run of `elements-full`."""
    output = tmp_path_factory.mktemp("pairs")
    short = (*small, "unlearn.steps=1", f"output={output}")
    return ExperimentContext(scenario("elements-full", *short, model=model))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"rmu"}))
@pytest.mark.parametrize("retain", RETAIN_LOSSES)
def test_every_shipped_recipe_runs(every_pair: ExperimentContext, method: str, retain: str):
    name = f"{method}-{retain}-rna-seed1"
    (run,) = (run for run in every_pair.scenario.runs if run.name == name)
    assert (run.recipe.method.name, run.recipe.retain.loss) == (method, retain)
    assert "error" not in execute(every_pair, run)
    assert set(load_answers(every_pair, run)) == {1}


def test_real_leaves_texts_tokens_and_questions_for_other_commands(model: str, tmp_path: Path):
    said = real("--plan", "--model", model)
    assert "6. rmu-hidden_mse-mixed-seed2: 120 steps (to do)" in said
    for file in DATA.glob("*/*"):
        written = tmp_path / "runs/real" / file.relative_to(DATA)
        assert written.read_bytes() == file.read_bytes()
    forget = load_tokens("runs/real/terms/forget.txt")
    assert load_tokens("runs/real/texts/mixing_tokens.txt") == forget[::2]
    assert {q.subject for q in load_questions("runs/real/questions/cities.jsonl")} == {"cities"}


def test_real_has_other_runs_with_full_tune_and_attacks(model: str):
    given = ("--plan", "--model", model)
    assert "62 of 62 runs to do" in real(*given, "--full")
    assert "50 of 50 runs to do" in real(*given, "--tune")
    assert "3 of 3 models to attack" in real(*given, "--attacks")
    assert "5 of 5 models to attack" in real(*given, "--attacks", "--full", "--only", "rmu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "rnu"), "'rnu' is not a method"),
        (("--only", "npo"), "has no run here; leave it out, or add --full"),
        (("--full", "--tune"), "does not go with full"),
        (("--attacks", "--tune"), "does not go with attacks"),
        (("--model", "package:nothing_like_it"), "the package nothing_like_it is not installed"),
    ],
)
def test_options_are_checked_before_anything_runs(options: tuple[str, ...], message: str):
    model = () if "--model" in options else ("--model", "nobody/nothing")
    with pytest.raises(UsageError, match=message):
        real(*options, *model)


def test_questions_behind_tokens_that_mixing_does_not_use_are_held_out():
    own = scenario("elements", "limit=3")
    tokens, controls = (load_tokens(str(DATA / f"terms/{n}.txt")) for n in ("forget", "controls"))
    perturbation = Perturbation(tokens, "before", controls)
    for name in ("capitals", "cities", "states"):
        for question in load_questions(str(DATA / f"questions/{name}.jsonl"), limit=3):
            replaced = perturbation.variants(question, 42)[FORGET_TOKEN].replaced
            assert replaced is not None
            is_held_out = (name, question.id) in held_out(own)
            assert is_held_out == (replaced.token not in tokens[::2])
    assert "forget" not in {name for name, _ in held_out(own)}
    assert held_out(replace(own, mixing_tokens=())) == set()


def test_the_grids_pair_each_seed_without_and_with_each_defence():
    short = scenario().runs
    assert {(run.seed, run.defence) for run in short} == {
        (seed, defence) for seed in (1, 2) for defence in ("none", "rna", "mixing")
    }
    assert {(run.method, run.retain_loss) for run in short} == {("rmu", "hidden_mse")}
    full = {run.name: run for run in scenario("elements-full").runs}
    assert len(full) == 62
    assert all(full[run.name] == run for run in short)
    assert len({(run.method, run.retain_loss) for run in full.values()}) == 18
    for pair in (("rmu", "hidden_mse"), ("simnpo", "logit_kl")):
        seeds = {run.seed for run in full.values() if (run.method, run.retain_loss) == pair}
        assert seeds == {1, 2, 3, 4, 5}
    stds = {(run.retain_loss, *run.defence_settings) for run in full.values() if "rna" in run.name}
    assert stds == {
        ("hidden_mse", ("std", "3x")),
        ("logit_kl", ("std", "0.3x")),
        ("logit_mse", ("std", "0.3x")),
    }


def test_fewer_questions_are_asked_where_there_are_many_runs():
    own = scenario("elements-full")
    runs = {run.name: run for run in own.runs}
    counts = {}
    for name in ("rmu-hidden_mse-seed1", "simnpo-logit_kl-seed1", "npo-logit_kl-seed1"):
        asked = own.questions[runs[name].questions]
        counts[name] = (asked.final[0].count, asked.interim[0].count, runs[name].checkpoints)
    assert list(counts.values()) == [
        (100, 30, (20, 30, 40, 60, 105, 120)),
        (50, 20, (7, 10, 14, 20, 35, 40)),
        (50, 20, (20, 40)),
    ]


def test_every_pair_is_tried_at_every_rate_and_answers_outlive_changed_recipes():
    own = scenario("elements", tune=True)
    assert own.folder.name == "tuning"
    assert len({(run.method, run.retain_loss) for run in own.runs}) == 18
    assert {run.seed for run in own.runs} == {0}
    for run in own.runs:
        values = [setting.partition("=")[0] for setting in run.settings]
        assert values[:2] == ["steps", "learning_rate"]
        assert set(values[2:]) <= {"weight"}
        assert own.questions[run.questions].final[0].count == 24
    reported = scenario().questions["reported"]
    ids = [
        {q.id for p in asked.final for group in p.groups for _, q in group}
        for asked in (own.questions["reported"], reported)
    ]
    assert not ids[0] & ids[1]


def test_names_of_runs_are_those_of_version_0_1_0():
    """Their answers lie in folders of these names."""
    full = {run.name for run in scenario("elements-full").runs}
    assert full >= {
        "rmu-hidden_mse-seed1",
        "rmu-hidden_mse-rna-seed5",
        "simnpo-logit_kl-mixed-seed2",
        "adaptive_rmu-logit_mse-rna-seed1",
    }
    assert {run.name for run in scenario("elements", tune=True).runs} >= {
        "rmu-hidden_mse-rna-seed0-steps=120-learning_rate=0.001-noise.std=3x",
        "rsv-logit_mse-seed0-steps=40-learning_rate=0.003-topics.0.weight=1",
        "npo-logit_kl-seed0-steps=40-learning_rate=0.003",
    }


def test_attacks_ask_some_elements_and_the_other_domains_in_turn():
    plan = attacked("elements-attacks")
    assert [len(questions) for questions in plan.data.sets.values()] == [40, 60]
    assert plan.data.settings.score == "cloze"
    assert [q.subject for q in plan.data.retain[:4]] == ["capitals", "cities", "states", "capitals"]
    assert {q.subject for q in plan.data.forget} == {"elements"}
    names = [run.name for run in plan.scenario.runs]
    assert plan.pairs() == [(names[0], names[1])]
    full = attacked("elements-attacks-full")
    assert {run.seed for run in full.scenario.runs} == {1, 2}
    assert len(full.pairs()) == 4


def test_the_pages_example_extends_the_shipped_experiment(tmp_path: Path):
    page = (Path(__file__).parents[3] / "docs" / "experiments.md").read_text("utf-8")
    (text,) = re.findall(r"^```yml\n(.*?)^```", page, re.M | re.S)
    file = tmp_path / "elements.yaml"
    file.write_text(text)
    own = scenario(str(file))
    assert [run.name for run in own.runs] == [
        *(f"rmu-hidden_mse{rna}-seed{seed}" for seed in (1, 2, 3) for rna in ("", "--rna-3x")),
        *(f"{m}-logit_kl{rna}-seed0" for m in ("npo", "simnpo") for rna in ("", "--rna-0.3x")),
    ]
    assert own.runs[0].recipe.topics[0].forget.source == str(DATA / "texts" / "forget.txt")
