"""The task files: lm-evaluation-harness itself gets the numbers of `defuse evaluate`."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from defuse.cli import app
from defuse.evaluate import Evaluation
from defuse.evaluate.evaluate import evaluate_parts
from defuse.evaluate.groups import group_figures, subjects_of
from defuse.evaluate.sources import Asking
from defuse.evaluate.tasks import SUITES, load_parts
from defuse.models.load import LoadedModel
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, ORIGINAL, Perturbation, Variant
from defuse.questions.prompts import description
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.benchmark_files import MMLU, write_mmlu_csv

FOLDER = Path(CliRunner().invoke(app, ["lm-eval-tasks"]).output.strip())
SHARED = Path("../shared/data")
SHIPPED = {
    "mmlu_forget_token": ("mmlu-perturbed", FORGET_TOKEN),
    "mmlu_control_token": ("mmlu-perturbed", CONTROL_TOKEN),
    "wmdp_retain": ("wmdp-retain", ORIGINAL),
    "wmdp_retain_forget_token": ("wmdp-retain-perturbed", FORGET_TOKEN),
    "wmdp_retain_control_token": ("wmdp-retain-perturbed", CONTROL_TOKEN),
}
Results = Mapping[str, Any]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel(build_llama(layers=2), build_tokenizer(), "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of MMLU's subjects, two questions each."""
    folder = tmp_path_factory.mktemp("data")
    write_mmlu_csv(folder)
    return folder


def manager(metadata: Any) -> TaskManager:
    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)


def harness(
    loaded: LoadedModel,
    tasks: Sequence[str],
    metadata: Mapping[str, object],
    asking: Asking | None = None,
) -> Results:
    asking = asking or Asking()
    build: Any = HFLM  # its decorator hides its parameters
    model = build(pretrained=loaded.model, tokenizer=loaded.tokenizer, device="cpu", batch_size=8)
    evaluate: Any = lm_eval.simple_evaluate
    return evaluate(
        model=model,
        tasks=list(tasks),
        num_fewshot=asking.few_shot,
        limit=asking.limit,
        task_manager=manager(metadata),
        bootstrap_iters=100,
    )


def defuse(
    loaded: LoadedModel,
    suite: str,
    data: Path,
    asking: Asking | None = None,
    tokens: Perturbation | None = None,
) -> Evaluation:
    parts = load_parts(SUITES[suite], str(data), asking)
    return evaluate_parts(loaded, parts, tokens or SUITES[suite].perturbation)


def assert_same(results: Results, evaluation: Evaluation, task: str, variant: Variant) -> None:
    """Accuracy and standard error of every subject and group, and every question's answer."""
    suite = SUITES[SHIPPED[task][0]]
    groups = {name: list(names) for name, names in suite.groups.items()}
    figures = group_figures(evaluation, {**subjects_of(evaluation), **groups})
    answers = {o.question.id: o for o in evaluation.answers[variant]}
    asked = 0
    for name, found in results["results"].items():
        if name.split("::")[0] != task:
            continue
        figure = figures[next(iter(groups)) if name == task else name.split("::")[-1]][variant]
        assert found["sample_len"] == figure.n
        assert found["acc,none"] == pytest.approx(figure.accuracy.value, abs=1e-12)
        assert found["acc_stderr,none"] == pytest.approx(figure.stderr, abs=1e-9)
        for sample in results["samples"].get(name, ()):
            answer = answers[sample["doc"]["id"]]
            logprobs = [float(response[0][0]) for response in sample["resps"]]
            assert logprobs == pytest.approx(answer.logprobs, abs=1e-4)
            assert sample["doc"]["choices"] == list(answer.question.choices)
            assert sample["acc"] == answer.is_correct
            asked += 1
    assert asked == len(answers)


def test_perturbed_mmlu_and_its_control_over_all_subjects(loaded, folder) -> None:
    tasks = ("mmlu_forget_token", "mmlu_control_token")
    results = harness(loaded, tasks, {"data": str(folder)})
    evaluation = defuse(loaded, "mmlu-perturbed", folder)
    assert_same(results, evaluation, tasks[0], FORGET_TOKEN)
    assert_same(results, evaluation, tasks[1], CONTROL_TOKEN)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs MMLU's csv files in {SHARED}/mmlu")
def test_retain_sets_of_real_questions_with_examples(loaded) -> None:
    """The paper's two subjects; clean, after the forget-token and after its control."""
    tasks = [task for task in SHIPPED if task.startswith("wmdp_retain")]
    asking = Asking(few_shot=1, limit=10)
    results = harness(loaded, tasks, {"data": str(SHARED)}, asking)
    evaluation = defuse(loaded, "wmdp-retain-perturbed", SHARED, asking)
    for task in tasks:
        assert_same(results, evaluation, task, SHIPPED[task][1])  # type: ignore[arg-type]


def test_other_tokens_and_another_seed_come_from_metadata(loaded, folder) -> None:
    tokens = Perturbation(("mumps", "rabies"), "choice", ("spoon", "ladder"))
    given = {"forget_tokens": tokens.tokens, "control_tokens": tokens.controls}
    metadata = {"data": str(folder), **given}
    results = harness(loaded, ["wmdp_retain_forget_token"], metadata)
    evaluation = defuse(loaded, "wmdp-retain-perturbed", folder, tokens=tokens)
    assert_same(results, evaluation, "wmdp_retain_forget_token", FORGET_TOKEN)
    first, second = (
        manager({"data": str(folder), "seed": seed}).load("mmlu_forget_token")["tasks"]
        for seed in (1, 2)
    )
    assert choices(first) != choices(second)


def choices(tasks: Mapping[str, Any]) -> list[list[str]]:
    return [doc["choices"] for task in tasks.values() for doc in task.test_docs()]


@pytest.mark.parametrize("task", SHIPPED)
def test_the_files_agree_with_the_suites(task: str, folder: Path) -> None:
    suite = SUITES[SHIPPED[task][0]]
    loaded: Any = manager({"data": str(folder)}).load(task)
    assert [name.split("::")[-1] for name in loaded["tasks"]] == [s.name for s in suite.subjects]
    for subject, each in zip(suite.subjects, loaded["tasks"].values(), strict=True):
        assert each.config.description == description(subject.about)
        assert each.config.task_alias == subject.name
    groups = {
        next(iter(suite.groups)) if name == task else name.split("::")[-1]: tuple(
            each.task_name.split("::")[-1] for each in group.get_all_tasks()
        )
        for name, group in loaded["groups"].items()
    }
    assert groups == {name: tuple(names) for name, names in suite.groups.items()}


def test_printing_the_folder_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom defuse.cli import app\n"
        "app(['lm-eval-tasks'], standalone_mode=False)\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip(), "mmlu_forget_token.yaml").is_file()


@pytest.mark.slow
def test_the_command_of_the_docs_runs(
    folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    arguments = ["--model", "hf", "--model_args", f"pretrained={tiny_model_folder}"]
    given = ["--metadata", json.dumps({"data": str(folder)}), "--device", "cpu"]
    command = ["--include_path", str(FOLDER), "--tasks", "mmlu_forget_token"]
    out = ["--output_path", str(tmp_path)]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "lm_eval", *arguments, *command, *given, *out],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.rglob("results_*.json")
    found = json.loads(file.read_text())["groups"]["mmlu_forget_token"]
    assert found["sample_len"] == 2 * len(MMLU)
