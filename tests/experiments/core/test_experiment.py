"""`defuse experiment`, as a user runs it: the page of the docs on a tiny model."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

from defuse.cli import app
from defuse.evaluate import evaluate_questions
from defuse.evaluate.answers import Settings
from defuse.experiments.core import job
from defuse.experiments.core.answers import FORGET, pooled
from defuse.experiments.core.experiment_file import load_experiment
from defuse.experiments.core.experiment_scenario import attack_plan, make_scenario
from defuse.experiments.core.job import Request, run_experiment, runs_to_do
from defuse.experiments.core.run import ExperimentContext, load_answers
from defuse.models.load import load_model
from defuse.questions import Perturbation, Variant, load_questions
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.helpers.schemas import validate

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "experiments.md").read_text("utf-8")
SETS = {"planets": "forget", "places": "places", "sports": "sports"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def question(word: str, number: int, subject: str) -> str:
    choices = ["a bird", "the tree", "the moon", "ants", "a cat"][: 4 + number % 2]
    stem = f"What does {word} {number} see?"
    row = {"question": stem, "choices": choices, "answer": number % 4, "subject": subject}
    return json.dumps(row)


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """A folder with the files that the page names; fewer steps, as the model is tiny."""
    folder = tmp_path_factory.mktemp("experiment")
    for name, seed in (("my-model", 0), ("never-knew", 1)):
        build_llama(seed=seed).save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    tuning = [question(w, i + 50, s) for w, s in SETS.items() for i in range(3)]
    files = {
        "planets.txt": [f"The planet number {i} is bad." for i in range(6)],
        "neutral.txt": [f"A cat number {i} sleeps well." for i in range(8)],
        "terms.txt": ["mars", "venus"],
        "others.txt": ["moon", "bird"],
        "tuning.jsonl": tuning,
        **{f"{word}.jsonl": [question(word, i, word) for i in range(6)] for word in SETS},
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines))
    (text,) = blocks("yaml")
    text = text.replace("steps: 60", "steps: 4").replace("[30, 60]", "[2, 4]")
    (folder / "planets.yaml").write_text(text)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["experiment", *arguments], catch_exceptions=False)
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def finished(place: Path) -> dict[str, Any]:
    """The page's experiment with one seed and a retrained model, and its results.json."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        given = ("compare.seeds=[0]", "retrained=never-knew")
        assert run("planets.yaml", "--plan", *given)[0] == 0
        assert not list(place.rglob("step-*.json"))
        code, said = run("planets.yaml", *given)
        assert code == 0, said
    return json.loads((place / "runs/planets/results.json").read_text("utf-8"))


def rows(finished: dict[str, Any], **wanted: object) -> list[dict[str, Any]]:
    return [r for r in finished["rows"] if all(r[name] == value for name, value in wanted.items())]


def test_results_have_a_row_for_each_model_step_set_and_variant(finished: dict[str, Any]):
    assert finished["schema_version"] == 1
    assert {r["model"] for r in finished["rows"]} == {"reference", "retrained", "unlearned"}
    for model in ("reference", "retrained"):
        for row in rows(finished, model=model):
            assert (row["method"], row["defence"], row["seed"], row["step"]) == (None,) * 3 + (0,)
    own = rows(finished, model="unlearned", method="rmu", defence="rna", step=4)
    assert all(row["defence_settings"] == {"std": "0.3x"} for row in own)
    found = {(r["question_set"], r["variant"], r["position"]) for r in own}
    assert found == {
        *((name, "original", None) for name in ("forget", "places", "sports")),
        *(
            (name, variant, position)
            for name in ("places", "sports")
            for variant in ("forget_token", "control_token")
            for position in ("before", "choice")
        ),
    }
    assert len(own) == len(found)
    for row in finished["rows"]:
        assert row["n"] == 6
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert {r["step"] for r in rows(finished, method="simnpo", defence="mixing")} == {2, 4}


def test_all_outputs_are_there_and_the_page_names_each_model(place: Path, finished: dict[str, Any]):
    names = {path.name for path in (place / "runs/planets").iterdir()}
    kinds = ("md", "csv", "tex", "png", "svg")
    assert {"report.html", "results.json", *(f"results.{kind}" for kind in kinds)} <= names
    page = (place / "runs/planets/report.html").read_text("utf-8")
    assert {g["label"] for g in finished["summary"]["groups"]} == {
        "reference", "retrained", "rmu", "rmu, rna 0.3x", "rmu, mixing 0.5",
        "simnpo", "simnpo, rna 0.3x", "simnpo, mixing 0.5",
    }  # fmt: skip
    for label in ("simnpo, mixing 0.5", "retrained"):
        assert label in page


@pytest.mark.usefixtures("finished")
def test_files_are_as_their_schemas_say(place: Path):
    folder = place / "runs/planets"
    validate("results", json.loads((folder / "results.json").read_text("utf-8")))
    for name, kind in (("answers", "answers"), ("runs", "record")):
        paths = list((folder / name).rglob("*.json"))
        assert paths
        for path in paths:
            validate(kind, json.loads(path.read_text("utf-8")))


@pytest.mark.usefixtures("finished")
def test_prompts_are_those_of_defuse_evaluate(here: Path):
    scenario = make_scenario(load_experiment("planets.yaml", ["compare.seeds=[0]"]))
    context = ExperimentContext(scenario)
    reference = load_model("my-model")
    evaluation = evaluate_questions(
        reference,
        load_questions("places.jsonl"),
        Settings(score="cloze"),
        Perturbation(("mars", "venus"), "before", ("moon", "bird")),
    )
    path = here / "runs/planets/answers/reference.json"
    cells = {
        (c["question_set"], c["variant"], c["position"]): c["answers"]
        for c in json.loads(path.read_text("utf-8"))["result"]
    }
    assert context.scenario.questions["reported"].final
    asked: tuple[tuple[Variant, str | None], ...]
    asked = (("original", None), ("forget_token", "before"))
    for variant, position in asked:
        told = cells["places", variant, position]
        for answer in evaluation.answers[variant]:
            own = told[answer.question.id]
            assert own["correct"] == answer.is_correct
            assert own["logprob"] == pytest.approx(answer.answer_logprob, abs=1e-5)
            assert own["choices"] == list(answer.question.choices)
            assert own["prompt"].endswith("\nAnswer:")


@pytest.mark.usefixtures("finished")
def test_what_is_finished_is_not_done_again_and_what_is_missing_comes_out_the_same(here: Path):
    answers = here / "runs/planets/answers"
    lost = answers / "rmu-seed0" / "step-0002.json"
    before, times = lost.read_text(), {p: p.stat().st_mtime_ns for p in answers.rglob("*.json")}
    lost.unlink()
    code, said = run("planets.yaml", "compare.seeds=[0]", "retrained=never-knew")
    assert (code, "1 of 6 runs to do" in said) == (0, True)

    def content(text: str) -> Any:
        return {k: v for k, v in json.loads(text).items() if k != "losses"}

    assert content(lost.read_text()) == content(before)
    del times[lost]
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())


@pytest.mark.usefixtures("here")
def test_a_run_killed_before_its_record_is_made_again():
    """Its answers are there; its versions and the perplexity would be missing for ever."""
    own = make_scenario(
        load_experiment(
            "planets.yaml", ["compare.seeds=[0]", "output=cut", "compare.defences=[none]"]
        )
    )
    assert run_experiment(own) == 0
    record = Path("cut/runs/rmu-seed0.json")
    whole = json.loads(record.read_text("utf-8"))["result"]
    record.unlink()
    Path("cut/runs/.rmu-seed0.json.abcdefgh.part").touch()
    assert [run.name for run in runs_to_do(ExperimentContext(own), retry_failed=False)] == [
        "rmu-seed0"
    ]
    assert run_experiment(own) == 0
    again = json.loads(record.read_text("utf-8"))["result"]
    assert again["check_up"] == whole["check_up"]
    assert again.keys() == whole.keys()
    assert not list(Path("cut/runs").glob(".*"))


@pytest.mark.usefixtures("here")
def test_what_another_writer_finished_meanwhile_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    """Both saw the run as missing; the second waits for nothing, and must not empty its record."""
    one = ("planets.yaml", "compare.seeds=[0]", "compare.methods={rmu: {}}")
    own = make_scenario(
        load_experiment(one[0], [*one[1:], "output=raced", "compare.defences=[none]"])
    )
    record = Path("raced/runs/rmu-seed0.json")

    @contextmanager
    def after_another(*_: object) -> Iterator[None]:
        monkeypatch.undo()
        monkeypatch.chdir(here_is)
        assert run_experiment(own) == 0
        kept.append(record.read_text("utf-8"))
        yield

    here_is, kept = Path.cwd(), list[str]()
    monkeypatch.setattr(job, "held", after_another)
    assert run_experiment(own) == 0
    assert record.read_text("utf-8") == kept[0]
    assert "recipe" in json.loads(kept[0])["result"]


def test_the_page_s_commands_run(here: Path):
    commands = [line.partition(" #")[0] for line in "".join(blocks("sh")).splitlines()]
    assert len(commands) == 5
    for command in commands[:2]:  # the others are run by other tests
        words = shlex.split(command)
        assert words[:2] == ["defuse", "experiment"]
        assert run(*words[2:], "--only", "rmu")[0] == 0, command
    assert not (here / "runs/planets/answers/tuning").exists()
    tuned = (here / "runs/planets/tuning/tuning.md").read_text()
    assert "coefficient=4x" in tuned
    assert "rna to keep:" in tuned


def test_the_page_s_python_example_runs(here: Path):
    (code,) = blocks("python")
    code = code.replace('"planets.yaml", [', '"planets.yaml", ["output=runs/python", ')
    exec(compile(code, "experiments.md", "exec"), {})  # noqa: S102 (our own page)
    assert (here / "runs/python/results.json").is_file()


@pytest.mark.usefixtures("here")
def test_a_run_that_fails_is_recorded_and_the_others_continue():
    given = (
        "output=runs/failing",
        "compare.seeds=[0]",
        "compare.methods={rmu: {coefficient: 4x, weight: 32}}",
        "compare.defences=[none, {rna: {std: 1e30}}]",
    )
    code, said = run("planets.yaml", *given)
    assert code == 1
    assert "failed: rmu--rna-1e30-seed0: learning_rate: at step 0" in said
    found = json.loads(Path("runs/failing/results.json").read_text("utf-8"))
    assert set(found["failed"]) == {"rmu--rna-1e30-seed0"}
    assert {r["defence"] for r in found["rows"] if r["model"] == "unlearned"} == {"none"}
    code, said = run("planets.yaml", *given)
    assert (code, "0 of 2 runs to do" in said) == (1, True)
    assert "1 of 2 runs to do" in run("planets.yaml", *given, "--plan", "--retry-failed")[1]


@pytest.mark.usefixtures("here")
def test_processes_do_what_one_process_does():
    scenarios = {}
    for runner in ("serial", "processes"):
        given = [
            f"output=runs/{runner}",
            "compare.seeds=[0]",
            "compare.defences=[none]",
            "text=false",
        ]
        assert run("planets.yaml", *given, "--runner", runner, "--jobs", "2")[0] == 0
        scenarios[runner] = make_scenario(load_experiment("planets.yaml", given))
    one, other = (
        [load_answers(ExperimentContext(s), r) for r in s.runs] for s in scenarios.values()
    )
    assert one == other
    assert all(a.asked == {} for a in pooled(one[0][4], FORGET).values())


def test_answers_of_another_experiment_are_refused(here: Path, finished: dict[str, Any]):
    assert finished
    for change, named in (
        ("unlearn.learning_rate=0.1", "recipe"),
        ("score=letters", "questions"),
        ("model=never-knew", "weights"),
    ):
        with pytest.raises(UsageError, match=f"belongs to other .*{named}.*name a new folder"):
            run("planets.yaml", "compare.seeds=[0]", change)
    text = here / "planets.txt"
    before = text.read_text()
    text.write_text(before + "\nOne more.")
    with pytest.raises(UsageError, match="belongs to other texts"):
        run("planets.yaml", "compare.seeds=[0]", "--report")
    text.write_text(before)


def test_a_run_without_its_last_step_is_not_reported(here: Path, finished: dict[str, Any]):
    shutil.copytree(here / "runs/planets", here / "runs/half")
    next((here / "runs/half").rglob("rmu-seed0/step-*4.json")).unlink()
    given = ("compare.seeds=[0]", "retrained=never-knew", "output=runs/half")
    code, said = run("planets.yaml", *given, "--report")
    assert code == 0
    assert "1 of 6 runs to do" in said
    half = json.loads((here / "runs/half/results.json").read_text("utf-8"))
    labels = {group["label"] for group in finished["summary"]["groups"]}
    assert {group["label"] for group in half["summary"]["groups"]} == labels - {"rmu"}


@pytest.mark.parametrize("other", ["one.yaml", "two.yaml"])
def test_an_experiment_that_extends_itself_is_refused(here: Path, other: str):
    (here / "one.yaml").write_text(f"extends: {other}\n")
    (here / "two.yaml").write_text("extends: one.yaml\n")
    with pytest.raises(UsageError, match=r"extends: 'one\.yaml' leads back to itself"):
        load_experiment("one.yaml")


REFUSED = {
    "colour=red": "has no field 'colour'",
    "questions.keep=x.jsonl": "questions: has no field 'keep'; it takes forget, retain, tuning",
    "compare.defences=[rnaa]": "compare.defences: 'rnaa' is not a defence; write none",
    "compare.defences=[{rna: {size: 1}}]": "compare.defences.rna: has no field 'size'",
    "compare.methods={rmuu: {}}": "compare.methods.rmuu: 'rmuu' is not a method; use rmu",
    "compare.methods.rmu.seed=3": "compare.methods.rmu.seed: 3 follows from other fields",
    "compare.methods.simnpo.coefficient=2": "coefficient: 2.0 does not belong to simnpo",
    "unlearn.steps=0": "steps",
    "perturb.positions=[behind]": "perturb.positions.0: 'behind' is refused",
    "questions.tuning={forget: planets.jsonl, places: tuning.jsonl, sports: tuning.jsonl}": (
        "is also reported"
    ),
    "score=numbers": "score",
    "perturb={forget_tokens: terms.txt, control_tokens: others.txt, positions: [choice], "
    "sentence: 'See {token}.'}": "is put before a question; add before to perturb.positions",
    "questions.forget={subject: forget}": "questions.forget: None is not a file or hub dataset",
    "model=nowhere/model/x": "nowhere/model/x does not exist",
    "checkpoints=[soon]": "checkpoints: 'soon' is neither a step nor a share, such as 1/2",
    "checkpoints=[-1/2]": "checkpoints: '-1/2' is neither a step nor a share",
    "compare.names='{colour}'": "names: '{colour}' is not a pattern; put some of name, method",
    "compare.names='{seed.__class__}'": "names: '{seed.__class__}' is not a pattern",
    "compare.names='{seed:999999999}'": "names: '{seed:999999999}' is not a pattern",
    "checkpoints=['1e999999999']": "checkpoints: inf is neither a step nor a share",
    "perturb.positions=0": "perturb.positions: 0 is refused",
    "perturb.sentence=1": "perturb.sentence: 1 is refused",
    "interim={questions: none}": "interim.questions: 'none' is refused",
    "attacked={seeds: all}": "attacked.seeds: 'all' is refused",
    "report.title=[1]": "report.title: [1] is refused",
    "compare.methods={rmu: 1}": "compare.methods: {'rmu': 1} is refused",
    "compare.methods={rmu: {method: {name: [x]}}}": "is not a method; use",
    "compare.methods={rmu: {recipe: 1}}": "compare.methods.rmu.recipe: 1 is refused",
    "compare.defences=[{rna: [std]}]": "compare.defences.rna: ['std'] is no mapping of fields",
    "compare.names=one": "names: one is the name of two runs; tell them apart",
    "compare.interim={answers: 1}": "interim: has no field 'answers'; it takes questions",
    "compare.colour=red": "compare: has no field 'colour'",
    "report.colour=red": "report: has no field 'colour'; it takes",
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("override", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_sentence(override: str):
    tune = ("--tune",) if "tuning" in override else ()
    with pytest.raises(UsageError) as refused:
        run("planets.yaml", "output=runs/refused", override, *tune)
    assert REFUSED[override] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(Path("runs").glob("refused/answers/*"))


@pytest.mark.usefixtures("here")
def test_a_question_set_may_be_one_subject_of_a_file():
    source = "{source: tuning.jsonl, subject: %s}"
    given = [f"questions.forget={source % 'forget'}"]
    given += [f"questions.retain={{places: {source % 'places'}, sports: sports.jsonl}}"]
    asked = make_scenario(load_experiment("planets.yaml", given)).questions["reported"]
    prompts = [prompt for probe in asked.final for group in probe.groups for prompt in group]
    found = {(cell.question_set, question.subject) for cell, question in prompts}
    assert found == {("forget", "forget"), ("places", "places"), ("sports", "sports")}
    assert {probe.settings.subject for probe in asked.final} == {"forget", "places", None}


@pytest.mark.usefixtures("here", "finished")
@pytest.mark.parametrize("keep", [False, True])
def test_checkpoints_to_keep_are_made_of_what_is_finished(keep: bool):
    given = ("compare.seeds=[0]", "retrained=never-knew", f"keep_models={str(keep).lower()}")
    context = ExperimentContext(make_scenario(load_experiment("planets.yaml", given)))
    todo = runs_to_do(context, retry_failed=False)
    assert len(todo) == keep * len(context.scenario.runs)


@pytest.mark.usefixtures("here")
def test_methods_may_be_labels_recipes_and_lists_of_defences():
    compare = {
        "methods": {
            "strong": {"method": "rmu", "coefficient": "6x"},
            "shipped": {"recipe": "smollm2/rmu-hidden_mse", "steps": 3, "layer": 3},
        },
        "defences": [{"rna": {"std": ["0.1x", "1x"]}}, {"rna": {"std": 1}, "mixing": {}}],
    }
    override = f"compare={yaml.safe_dump(compare, default_flow_style=True, sort_keys=False)}"
    runs = make_scenario(load_experiment("planets.yaml", [override])).runs
    assert [r.group for r in runs] == [
        f"{name}, {defence}"
        for name in ("strong", "shipped")
        for defence in ("rna 0.1x", "rna 1x", "rna 1 + mixing")
    ]
    assert runs[0].recipe.method.name == runs[3].recipe.method.name == "rmu"
    assert [topic.settings.coefficient for topic in runs[0].recipe.topics] == ["6x"]
    assert (runs[3].steps, runs[2].defence) == (3, "rna+mixing")
    assert dict(runs[2].defence_settings) == {"rna.std": 1}


@pytest.mark.usefixtures("here")
def test_grids_have_questions_checkpoints_and_names_of_their_own():
    rmu = {"methods": {"rmu": {"coefficient": "4x", "weight": 32}}}
    compare = [
        {**rmu, "seeds": [0, 1], "defences": ["none", {"rna": {"std": 1}, "name": "noisy"}]},
        {
            **rmu,
            "retain": ["hidden_mse", "logit_kl"],
            "values": {"steps": [6, 8], "weight": [2]},
            "names": "{method}-{retain}-{steps}",
            "checkpoints": ["1/3", 5],
            "limit": 4,
            "interim": {"questions": 2},
        },
        {**rmu, "limit": 1},
    ]
    override = f"compare={yaml.safe_dump(compare, default_flow_style=True, sort_keys=False)}"
    own = make_scenario(load_experiment("planets.yaml", [override]))
    runs = {run.name: run for run in own.runs}
    names = [f"rmu-{retain}-{steps}" for retain in ("hidden_mse", "logit_kl") for steps in (6, 8)]
    first = ["rmu-seed0", "rmu-noisy-seed0", "rmu-seed1", "rmu-noisy-seed1"]
    assert list(runs) == [*first, *names]
    assert runs["rmu-noisy-seed0"].group == "rmu, rna 1"
    tried = runs["rmu-logit_kl-8"]
    assert tried.group == "rmu + logit_kl steps=8 weight=2"
    assert (tried.recipe.retain.loss, tried.recipe.steps) == ("logit_kl", 8)
    assert tried.recipe.topics[0].settings.weight == 2
    assert (tried.checkpoints, runs["rmu-hidden_mse-6"].checkpoints) == ((3, 5, 8), (2, 5, 6))
    for name, counts in (("rmu-seed0", (6, 6)), ("rmu-logit_kl-8", (4, 2))):
        asked = own.questions[runs[name].questions]
        assert (asked.final[0].count, asked.interim[0].count) == counts


@pytest.mark.usefixtures("here")
def test_tuning_runs_may_be_grids():
    tune = "[{methods: [rmu], values: {coefficient: [2x, 3x], weight: [9]}, seeds: [5]}]"
    own = make_scenario(load_experiment("planets.yaml", [f"tune={tune}"]), tune=True)
    assert [run.name for run in own.runs] == [
        "rmu-coefficient=2x-weight=9-seed5",
        "rmu-coefficient=3x-weight=9-seed5",
    ]


def test_an_experiment_is_filled_up_from_one_that_it_extends(here: Path):
    folder = here / "further"
    folder.mkdir()
    (folder / "planets.txt").write_text("The planet mars is bad.\n" * 3)
    (folder / "planets.yaml").write_text(
        "extends: ../planets\nname: further\ncompare: {methods: [simnpo]}\n"
        "report: {title: Further, stem: further}\nperturb: {positions: [choice]}\n"
    )
    own = make_scenario(load_experiment(folder / "planets.yaml", ["compare.seeds=[3]"]))
    assert [run.name for run in own.runs][:2] == ["simnpo-seed3", "simnpo--rna-0.3x-seed3"]
    assert own.runs[0].recipe.topics[0].forget.source == str(folder / "planets.txt")
    assert Path(own.runs[0].recipe.topics[0].retain.source).samefile(here / "neutral.txt")
    assert (own.layout.title, own.layout.stem, own.layout.judged) == (
        "Further",
        "further",
        "choice",
    )
    (folder / "planets.yaml").write_text("extends: planets\n")
    with pytest.raises(UsageError, match="experiments/planets: is no shipped recipe"):
        load_experiment(folder / "planets.yaml")


@pytest.mark.usefixtures("here")
def test_attacks_may_ask_some_questions_of_each_set_in_turn_and_several_seeds():
    given = ["attacks=[quantise]", "attacked={seeds: [0, 2], forget: 2, retain: 3}"]
    experiment = load_experiment("planets.yaml", given)
    plan = attack_plan(experiment, make_scenario(experiment))
    assert plan is not None
    assert {run.seed for run in plan.scenario.runs} == {0, 2}
    assert [q.id for q in plan.data.forget] == ["planets/0", "planets/1"]
    assert [q.id for q in plan.data.retain] == ["places/0", "sports/0", "places/1"]


@pytest.mark.usefixtures("here")
def test_a_forget_set_that_is_not_known_comes_with_a_caution(capsys: pytest.CaptureFixture[str]):
    """A random model answers by chance: there is nothing to forget."""
    from rich.console import Console

    scenario = make_scenario(load_experiment("planets.yaml", ["output=runs/unknown"]))
    run_experiment(scenario.with_runs(scenario.runs[:1]), Request(), Console())
    said = " ".join(capsys.readouterr().out.split())
    assert "no better than chance: nothing to forget" in said
    assert "no better than chance: nothing to lose. Small models often cannot answer" in said


@pytest.mark.usefixtures("here")
def test_the_attacks_that_a_file_names_run_on_the_models_of_the_first_seed():
    given = ["output=runs/attacked", "compare.methods={rmu: {coefficient: 4x, weight: 32}}"]
    given += ["compare.defences=[none]", "attacks={quantise: {bits: [4]}}", "perturb=null"]
    assert run("planets.yaml", *given, "--jobs", "1")[0] == 0
    found = json.loads(Path("runs/attacked/attacks/results.json").read_text("utf-8"))
    assert set(found["models"]) == {"reference", "rmu-seed0"}
    (condition,) = found["models"]["rmu-seed0"]["quantise"]["conditions"]
    assert condition["effects"]["retain"]["after"]["n"] == 12
    with pytest.raises(UsageError, match="did you mean 'quantise'"):
        run("planets.yaml", *given, "attacks=[quantize]")


def test_a_log_says_how_far_the_experiment_is(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert here
    monkeypatch.setattr("defuse.utils.progress.EVERY_SECONDS", 0.05)
    given = ("output=runs/logged", "compare.seeds=[0]", "compare.defences=[none]")
    monkeypatch.setattr("sys.argv", ["defuse", "experiment", "planets.yaml", *given])
    from defuse.cli import main

    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    said = capfd.readouterr().err
    assert "asking the reference model: 0 of " in said
    assert re.search(r"^2 runs: \d of 8, .*left, rmu-seed0, step \d of 4$", said, re.M)
