"""`defuse sweep` on Ray: interrupted, gone on with, and equal to runs made one by one."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerBase

from defuse import cli
from defuse.evaluate import Settings, evaluate_questions
from defuse.experiments.core.answers import Cell, from_json
from defuse.experiments.sweep import scenario
from defuse.experiments.sweep.table import Format, write_table
from defuse.models.load import LoadedModel, load_model
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, ORIGINAL, Perturbation, load_questions
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.recipe import Recipe, load_recipe
from defuse.unlearning.run import check, finished
from defuse.unlearning.train import unlearn
from defuse.utils.errors import UsageError
from defuse.utils.files import held
from defuse.utils.ray_workers import connected, ray_workers
from tests.conftest import build_llama
from tests.helpers.schemas import validate

OLD = Path(__file__).parents[2] / "helpers" / "version_0_1_0" / "sweep"
GRID = ("noise.std=none,0.3x,1e30", "seed=0..1")
QUESTIONS = ("--forget-questions", "forget.jsonl", "--retain-questions", "retain.jsonl")
TOKENS = ("--perturb", "gold.txt", "--control", "moon.txt", "--position", "before")
PERTURBED = (Cell("retain", CONTROL_TOKEN, "before"), Cell("retain", FORGET_TOKEN, "before"))
CELLS = (Cell("forget"), Cell("retain"), *PERTURBED)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One for all tests: a session that is there already is used by every sweep."""
    with connected(None, cpus=2):
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder with a recipe, its texts and its model, and questions."""
    folder = tmp_path_factory.mktemp("sweep")
    build_llama().save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    for name, lines in {
        "forget.txt": [f"The virus number {i} is bad." for i in range(6)],
        "retain.txt": [f"A cat number {i} sleeps well." for i in range(9)],
        "gold.txt": ["gold", "iron"],
        "moon.txt": ["moon", "bird"],
        "forget.jsonl": [question("virus", i) for i in range(6)],
        "retain.jsonl": [question("cat", i) for i in range(8)],
    }.items():
        (folder / name).write_text("\n".join(lines))
    topics = [{"name": "bio", "forget": "forget.txt", "retain": "retain.txt", "weight": 2.0}]
    recipe = {"model": "model", "output": "out", "method": {"name": "rmu"}, "layer": 2}
    recipe |= {"topics": topics, "steps": 8, "batch_size": 2, "learning_rate": 0.003}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "device": "cpu"}))
    return folder


def question(word: str, number: int) -> str:
    choices = ["a bird", "the tree", "the moon", "ants"]
    stem = f"What does {word} {number} see?"
    return json.dumps({"question": stem, "choices": choices, "answer": number % 4})


def sweep(*arguments: str) -> int:
    """Run `defuse sweep recipe.yaml …` in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patched:
        command = ["defuse", "sweep", "recipe.yaml", *QUESTIONS, *TOKENS, *arguments]
        patched.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            cli.main()
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def swept(work: Path, ray_session: None) -> Path:  # noqa: ARG001
    """The sweep's folder, after Ctrl-C at the second finished run and a second go."""

    def interrupted(form: Format, folder: Path) -> Path:
        path = write_table(form, folder)
        if len(rows(folder)) == 2:
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(work)
        with pytest.MonkeyPatch.context() as stopped:
            stopped.setattr(scenario, "write_table", interrupted)
            assert sweep(*GRID, "--keep", "--workers", "2") == 130
        done = {path: path.stat().st_mtime_ns for path in records(work)}
        assert len(done) == 2
        assert sweep(*GRID, "--keep", "--jobs", "1") == 1  # some runs fail
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    return work / "out-sweep"


@pytest.fixture
def here(swept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand where the sweep was started."""
    monkeypatch.chdir(swept.parent)
    return swept


def records(work: Path) -> list[Path]:
    return sorted((work / "out-sweep" / "runs").glob("*.json"))


def read(work: Path) -> dict[tuple[Any, int], dict[str, Any]]:
    """Records by noise and seed."""
    found = [json.loads(path.read_text("utf-8"))["result"] for path in records(work)]
    return {(each["fields"]["noise.std"], each["seed"]): each for each in found}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text("utf-8").splitlines()]


def test_a_run_that_fails_is_recorded_and_the_others_go_on(here: Path) -> None:
    found = read(here.parent)
    assert set(found) == {(noise, seed) for noise in (None, "0.3x", 1e30) for seed in (0, 1)}
    failed = {point for point, record in found.items() if "error" in record}
    assert failed == {(1e30, 0), (1e30, 1)}
    assert found[1e30, 0]["error"].startswith("learning_rate: at step 0 the losses became")
    assert "Traceback" in found[1e30, 0]["traceback"]
    errors = {(row["noise.std"], row["seed"]): row["error"] for row in rows(here)}
    assert errors == {point: record.get("error") for point, record in found.items()}


def test_a_run_equals_the_same_recipe_run_by_itself(here: Path) -> None:
    base = load_model("model", device="cpu")
    perturbation = Perturbation(("gold", "iron"), "before", ("moon", "bird"))
    for (noise, seed), record in read(here.parent).items():
        if noise == 1e30:
            continue
        noise_field = [] if noise is None else [f"noise.std={noise}"]
        recipe = load_recipe(Path("recipe.yaml"), [f"seed={seed}", *noise_field])
        result = unlearn_alone(base, recipe)
        losses = [(step.forget_loss, step.retain_loss) for step in result.records]
        told = [(step["forget_loss"], step["retain_loss"]) for step in record["steps"]]
        torch.testing.assert_close(told, losses, rtol=1e-4, atol=1e-6)
        alone = replace(base, model=result.model)
        forgotten = evaluate_questions(alone, load_questions("forget.jsonl"))
        kept = evaluate_questions(alone, load_questions("retain.jsonl"), Settings(), perturbation)
        expected = [
            forgotten.answers[ORIGINAL],
            *(kept.answers[v] for v in (ORIGINAL, CONTROL_TOKEN, FORGET_TOKEN)),
        ]
        kept_answers = here / "answers" / record["run"] / "step-0008.json"
        told = from_json(json.loads(kept_answers.read_text("utf-8"))["result"])
        for cell, outcomes in zip(CELLS, expected, strict=True):
            assert list(told[cell]) == [o.question.id for o in outcomes]
            assert [a.correct for a in told[cell].values()] == [o.is_correct for o in outcomes]
            log_probs = [answer.logprob for answer in told[cell].values()]
            assert log_probs == pytest.approx([o.answer_logprob for o in outcomes], abs=1e-4)


def unlearn_alone(base: LoadedModel, recipe: Recipe):
    topics = [topic.build() for topic in recipe.topics]
    return unlearn(base.model, base.tokenizer, topics, recipe.unlearning(), recipe.training())


def test_a_checkpoint_that_was_kept_is_that_of_defuse_unlearn(here: Path) -> None:
    record = read(here.parent)["0.3x", 1]
    recipe = load_recipe(
        Path("recipe.yaml"), ["noise.std=0.3x", "seed=1", f"output={record['recipe']['output']}"]
    )
    assert finished(check(recipe))
    kept = load_model(recipe.output, device="cpu")
    alone = unlearn_alone(load_model("model", device="cpu"), recipe)
    for name, tensor in alone.changed.items():
        torch.testing.assert_close(kept.model.get_parameter(name).data, tensor)


def test_a_line_of_the_table_holds_point_figures_and_what_it_took(here: Path) -> None:
    row = next(row for row in rows(here) if (row["noise.std"], row["seed"]) == ("0.3x", 0))
    figures = {name.partition(".")[0] for name in row if name.endswith(".low")}
    assert figures == {
        *(
            "forget_accuracy",
            "retain_accuracy",
            "vulnerability",
            "vulnerability_nats",
            "any_sentence",
        ),
        *("after_control_accuracy", "after_forget_accuracy"),
    }
    assert (row["forget_accuracy.n"], row["retain_accuracy.n"]) == (6, 8)
    assert row["forget_loss"] > 0
    assert row["seconds"] > 0
    assert row["peak_memory_bytes"] > 10**6
    assert row["recipe"]["noise"]["std"] == "0.3x"
    assert {"torch", "defuse"} <= set(row["versions"])


def test_what_is_finished_is_only_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [path.stat().st_mtime_ns for path in records(here.parent)]
    table = (here / "runs.jsonl").read_bytes()
    assert sweep(*GRID, "--format", "parquet") == 1
    assert not (here / "runs.jsonl").exists()
    assert sweep(*GRID) == 1
    assert (here / "runs.jsonl").read_bytes() == table
    assert [path.stat().st_mtime_ns for path in records(here.parent)] == before
    said = capsys.readouterr().out
    assert "0 of 6 runs to do" in said
    assert "failed: noise.std=1e30 seed=1: learning_rate: at step 0" in said
    page = (here / "sweep.md").read_text("utf-8")
    assert "| noise.std=0.3x | 2 | 6 / 8 | 0." in page
    assert "- failed: noise.std=1e30 seed=0: learning_rate: at step 0" in page
    names = {path.name for path in here.iterdir()}
    assert {"sweep.png", "sweep.svg", "sweep.csv", "sweep.tex", "report.html"} <= names


@pytest.mark.usefixtures("here")
def test_a_run_killed_before_its_record_is_in_the_table_after_the_next_go(work: Path) -> None:
    """Its answers and its checkpoint are there, and its row would be missing for ever."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(work)
        command = ("noise.std=none", "--runner", "serial", "--keep", "--output", "early")
        assert sweep(*command) == 0
        table = rows(Path("early"))
        for path in (*Path("early", "runs").glob("*.json"), Path("early", "runs.jsonl")):
            path.unlink()
        assert sweep(*command) == 0
    again = rows(work / "early")
    assert len(table) == len(again) == 1
    times = {"seconds": 0, "peak_memory_bytes": 0, "finished": ""}
    assert again[0] | times == table[0] | times


@pytest.mark.usefixtures("here")
def test_a_plan_says_what_would_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    for option, left in (("--retry-failed", "to do"), ("--keep", "failed")):
        assert sweep(*GRID, "--plan", option) == 0
        said = capsys.readouterr().out
        assert f"{2 * (left == 'to do')} of 6 runs to do" in said
        assert f"5. noise.std=1e30 seed=0: 8 steps ({left})" in said
    assert sweep("noise.std=none,0.1", "seed=1,2", "--plan") == 0
    said = capsys.readouterr().out
    assert "3 of 4 runs to do" in said
    assert "noise.std=0.1 seed=2" in said


@pytest.mark.usefixtures("here")
def test_changed_texts_make_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("forget.txt").read_text("utf-8")
    Path("forget.txt").write_text(text + "\nOne more.")
    assert sweep(*GRID, "--plan") == 0
    Path("forget.txt").write_text(text)
    assert "6 of 6 runs to do" in capsys.readouterr().out


def test_a_second_process_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(here / ".lock", "out", "it"):
        assert sweep(*GRID) == 2
    assert "output: the experiment in out-sweep is in use by another" in capsys.readouterr().err


def test_another_base_model_is_refused(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((here / "answers" / "reference.json").read_text("utf-8"))
    document["identity"]["model"] = "another"
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "reference.json").write_text(json.dumps(document))
    assert sweep("--out", str(tmp_path)) == 2
    assert "belongs to other model" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


REFUSED = {
    "point": (["seed=0,1", "layer=2,9"], "seed=0 layer=9: layer: 9 is not a block of this model"),
    "questions": ([*GRID, "--limit", "3"], "belongs to other questions; name a new folder"),
    "twins": (["learning_rate=1e-3,0.001"], "is the same recipe as learning_rate=1e-3; leave one"),
    "limit": (["--limit", "0"], "limit: 0 is refused"),
    "huge limit": (["--limit", "1" + "0" * 30], "is refused"),
    "value": (["seed=!!float x"], "seed: '!!float x' is no list"),
    "out": (["--out", "recipe.yaml/x"], "output: recipe.yaml/x cannot be written"),
    "shard": (["shard=true"], "shard: needs several processes"),
    "jobs": (["--jobs", "0"], "jobs: 0 is refused"),
    "missing": (["--forget-questions", "gone.jsonl"], "gone.jsonl: no such file"),
    "dev": (["--few-shot", "2"], "dev: missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_is_refused_before_anything_does(
    here: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    arguments, sentence = REFUSED[case]
    before = {path: path.stat().st_mtime_ns for path in here.parent.rglob("*")}
    assert sweep(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in here.parent.rglob("*")} == before


@pytest.mark.usefixtures("here")
def test_without_ray_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("defuse.utils.runner.find_spec", lambda _: None)
    assert sweep(*GRID) == 2
    assert "pip install 'defuse-llm[ray]'" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_session")
def test_a_run_whose_process_dies_is_tried_again_and_then_recorded(
    tmp_path: Path,
) -> None:
    tries = tmp_path / "tries"

    def work(task: str) -> str:  # a real one would have its process import PyTorch
        with tries.open("a") as file:
            file.write(task)
        if task == "x":
            os._exit(1)
        return task

    with ray_workers(1, int) as submit:
        dead, alive = submit(work, "x"), submit(work, "y")
        with pytest.raises(UsageError, match="the process died 2 times"):
            dead.result()
        assert alive.result() == "y"
    assert tries.read_text() == "xxy"


@pytest.mark.usefixtures("ray_session")
def test_a_process_without_a_place_gets_no_run() -> None:
    with ray_workers(3, int) as submit:  # the session has two cores
        found = [submit(number).result(timeout=60) for number in (int, float, int, float)]
    assert found == [0, 0.0, 0, 0.0]


def test_a_sweep_of_version_0_1_0_is_read_and_continued(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its runs are named otherwise, and hold their answers; base.json is the reference's."""
    old = here.parent / "old"
    shutil.copytree(OLD, old)
    known = json.loads((old / "runs" / "b7519449cd07.json").read_text("utf-8"))
    grid = ("noise.std=0.3x,1e30", "seed=0", "--out", "old")
    assert sweep(*grid, "--report") == 1
    said = capsys.readouterr().out
    assert "0 of 2 runs to do" in said
    assert "failed: noise.std=1e30: learning_rate" in said
    row, failed = rows(old)
    figures = {n.removesuffix(".value"): v for n, v in row.items() if n.endswith(".value")}
    assert figures == {name: each["value"] for name, each in known["figures"].items()}
    assert (row["forget_loss"], row["error"]) == (known["forget_loss"], None)
    assert failed["error"].startswith("learning_rate")
    results = json.loads((old / "results.json").read_text("utf-8"))
    validate("results", results)
    found = [r for r in results["rows"] if (r["model"], r["variant"]) == ("unlearned", "original")]
    assert [(r["question_set"], r["correct"]) for r in found] == [("forget", 2), ("retain", 2)]
    assert sweep(*grid[:1], "seed=0,1", *grid[2:], "--plan") == 0
    assert "2 of 4 runs to do" in capsys.readouterr().out


def test_results_and_records_are_as_their_schemas_say(here: Path) -> None:
    results = json.loads((here / "results.json").read_text("utf-8"))
    validate("results", results)
    assert {row["run"] for row in results["rows"] if row["run"]} <= set(
        results["settings"]["points"]
    )
    assert set(results["failed"]) <= set(results["settings"]["points"])
    for path in records(here.parent):
        validate("record", json.loads(path.read_text("utf-8")))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("retain", ["hidden_mse", "logit_kl"])
def test_noise_of_size_0_is_no_noise(retain: str) -> None:
    base = load_model("model", device="cpu")
    recipe = load_recipe(Path("recipe.yaml"), [f"retain.loss={retain}"])
    topics = [topic.build() for topic in recipe.topics]
    with_none, with_zero = (
        unlearn(
            base.model,
            base.tokenizer,
            topics,
            replace(recipe.unlearning(), noise=noise),
            recipe.training(),
        )
        for noise in (None, GaussianNoise(std=0))
    )
    for name, tensor in with_none.changed.items():
        torch.testing.assert_close(with_zero.changed[name], tensor, rtol=1e-4, atol=1e-5)


def own_session(work: Path, mark: Mapping[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Start `defuse sweep`, which starts Ray; all of its processes know the mark."""
    command = [sys.executable, "-m", "defuse", "sweep", "recipe.yaml", *QUESTIONS, *arguments]
    return subprocess.Popen(  # noqa: S603
        command,
        cwd=work,
        env={**os.environ, **mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def marked(mark: Mapping[str, str]) -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if environment(each).items() >= mark.items()]


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow  # it starts Ray: 15 s
def test_ray_of_a_sweep_s_own_is_quiet_and_leaves_no_process_behind(work: Path) -> None:
    mark = {"DEFUSE_TEST_MARK": str(uuid4())}
    out, err = own_session(work, mark, GRID[1], "--out", "own").communicate()
    assert "2 of 2 runs to do" in out
    assert "ray" not in (out + err).lower()
    wait_for(lambda: not marked(mark), 15)


@pytest.mark.slow  # it starts Ray: 30 s
def test_a_killed_sweep_leaves_no_process_of_ray_behind(work: Path) -> None:
    mark = {"DEFUSE_TEST_MARK": str(uuid4())}
    parent = own_session(work, mark, "seed=0..1", "steps=100000", "--output", "killed")
    wait_for(lambda: any("Process.call" in each.name() for each in marked(mark)), 120)
    parent.kill()
    parent.communicate()
    wait_for(lambda: not marked(mark), 30)


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
