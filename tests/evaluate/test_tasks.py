"""Suites: subjects, descriptions and weights are lm-eval's; files are found as they come."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from defuse import cli
from defuse.evaluate import evaluate_questions
from defuse.evaluate.sources import Asking
from defuse.evaluate.tasks import SUITES, choose_suite, load_parts
from defuse.evaluate.tasks.load import load_subject
from defuse.models.load import load_model
from defuse.questions import ORIGINAL
from defuse.questions.prompts import description
from defuse.utils.errors import UsageError
from tests.helpers.benchmark_files import (
    MMLU,
    WMDP,
    write_hub_dataset,
    write_mmlu_csv,
    write_parquet,
    write_wmdp_json,
)

TASKS = Path(lm_eval.tasks.__file__).parent


def yaml(path: str) -> Mapping[str, Any]:
    return load_yaml(TASKS / path, resolve_func=False)


def test_mmlu_s_subjects_descriptions_and_groups_are_lm_evals() -> None:
    suite = SUITES["mmlu"]
    assert len(suite.subjects) == 57
    groups: dict[str, set[str]] = {}
    for subject in suite.subjects:
        task = yaml(f"mmlu/default/mmlu_{subject.name}.yaml")
        assert (task["dataset_path"], task["dataset_name"]) == (suite.hub, subject.config)
        assert task["description"] == description(subject.about)
        assert (task["test_split"], task["fewshot_split"]) == ("test", suite.examples)
        group = task["tag"].removeprefix("mmlu_").removesuffix("_tasks")
        groups.setdefault(group, set()).add(subject.name)
    assert {name: set(subjects) for name, subjects in suite.groups.items()} == {
        "mmlu": set(MMLU),
        **groups,
    }
    for group in ("", *(f"_{name}" for name in groups)):
        (metric,) = yaml(f"mmlu/default/_mmlu{group}.yaml")["aggregate_metric_list"]
        assert metric["weight_by_size"] is True


def test_wmdp_s_subjects_descriptions_and_groups_are_lm_evals() -> None:
    suite = SUITES["wmdp"]
    for subject in suite.subjects:
        task = yaml(f"wmdp/wmdp_{subject.name}.yaml")
        assert task["dataset_name"] == subject.config
        assert task["description"] == description(subject.about)
        assert task["dataset_path"] == suite.hub
    group = yaml("wmdp/_wmdp.yaml")
    assert [f"wmdp_{name}" for name in suite.groups["wmdp"]] == group["task"]
    assert group["aggregate_metric_list"][0]["weight_by_size"] is True


def test_a_subject_reads_the_same_from_every_layout(tmp_path: Path) -> None:
    write_mmlu_csv(tmp_path / "csv", ["virology"], count=4)
    write_mmlu_csv(tmp_path / "home/mmlu", ["virology"], count=4)
    write_parquet(tmp_path / "hub", {"virology": "virology"}, "test", 4)
    suite = choose_suite("mmlu", ["virology"])
    (subject,) = suite.subjects
    found = [load_subject(suite, subject, str(tmp_path / name)) for name in ("csv", "home", "hub")]
    assert found[0] == found[1] == found[2]
    assert [question.id for question in found[0]] == [f"virology/{i}" for i in range(4)]
    assert load_subject(suite, subject, str(tmp_path / "hub"), limit=3) == found[0][:3]


def test_wmdp_reads_the_same_from_every_layout(tmp_path: Path) -> None:
    write_wmdp_json(tmp_path / "json")
    write_wmdp_json(tmp_path / "home/wmdp")
    configs = {f"wmdp-{name}": name for name in WMDP}
    write_parquet(tmp_path / "hub", configs, "test", 4)
    parts = [load_parts(SUITES["wmdp"], str(tmp_path / n)) for n in ("json", "home", "hub")]
    assert parts[0] == parts[1] == parts[2]
    assert [part.settings.subject for part in parts[0]] == ["biology", "chemistry", "cybersecurity"]
    assert {q.subject for part in parts[0] for q in part.questions} == {"bio", "chem", "cyber"}


def test_the_hub_s_datasets_are_found_by_configuration_and_split(hub: Path) -> None:
    write_hub_dataset(hub / "cais/wmdp", {f"wmdp-{name}": name for name in WMDP}, ["test"])
    write_hub_dataset(hub / "cais/mmlu", {"virology": "virology"}, ["test", "dev"])
    wmdp = load_parts(SUITES["wmdp"])
    assert [q.id for part in wmdp for q in part.questions][2:4] == ["wmdp-bio/2", "wmdp-chem/0"]
    (part,) = load_parts(choose_suite("mmlu-virology"), None, Asking(few_shot=2, limit=1))
    assert (len(part.questions), len(part.settings.few_shot)) == (1, 2)
    write_mmlu_csv(hub / "data", ["virology"], count=1)
    (local,) = load_parts(choose_suite("mmlu-virology"), "data")
    assert local.questions == part.questions


def test_wmdp_retain_asks_mmlu_s_questions_under_wmdp_s_lines(tmp_path: Path) -> None:
    """And never finds WMDP's own files."""
    write_mmlu_csv(tmp_path, ["college_biology", "computer_security"])
    write_wmdp_json(tmp_path)
    bio, cyber = load_parts(SUITES["wmdp-retain"], str(tmp_path))
    assert [part.settings.subject for part in (bio, cyber)] == ["biology", "cybersecurity"]
    assert [q.id for q in cyber.questions] == ["computer_security/0", "computer_security/1"]
    with pytest.raises(UsageError, match="lacks the test questions of 2 of 2 subjects"):
        load_parts(SUITES["wmdp-retain"], str(tmp_path / "dev"))


def test_examples_come_from_the_dev_split_in_order(tmp_path: Path) -> None:
    write_mmlu_csv(tmp_path, ["virology"])
    suite = choose_suite("mmlu-virology")
    (part,) = load_parts(suite, str(tmp_path), Asking(few_shot=2))
    assert [q.stem[:32] for q in part.settings.few_shot] == ["Which cat of virology dev is num"] * 2
    with pytest.raises(UsageError, match="few-shot: is 5, but virology has 3 examples"):
        load_parts(suite, str(tmp_path), Asking(few_shot=5))
    with pytest.raises(UsageError, match="wmdp has no examples"):
        load_parts(SUITES["wmdp"], str(tmp_path), Asking(few_shot=1))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write_mmlu_csv(tmp_path, [name for name in MMLU if name not in ("virology", "anatomy")])
    with pytest.raises(UsageError, match=r"2 of 57 subjects \(anatomy, virology\); add"):
        load_parts(SUITES["mmlu"], str(tmp_path))
    (tmp_path / "dev/astronomy_dev.csv").unlink()
    astronomy = choose_suite("mmlu", ["astronomy"])
    assert load_parts(astronomy, str(tmp_path))
    with pytest.raises(UsageError, match="lacks the dev questions"):
        load_parts(astronomy, str(tmp_path), Asking(few_shot=1))
    with pytest.raises(UsageError, match=r"without the hub give --data FOLDER with wmdp-bio/test"):
        load_parts(SUITES["wmdp"])
    with pytest.raises(UsageError, match="is no folder; give one, or a hub dataset"):
        load_parts(SUITES["wmdp"], str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="owner/name:wmdp-bio:test"):
        load_parts(SUITES["wmdp"], "owner/name")


def test_a_part_of_a_suite_says_so() -> None:
    some = choose_suite("mmlu-perturbed", ["virology", "anatomy", "virology"])
    assert [subject.name for subject in some.subjects] == ["virology", "anatomy"]
    assert dict(some.groups) == {
        "mmlu, 2 of 57 subjects": ("anatomy", "virology"),
        "stem, 1 of 19 subjects": ("anatomy",),
        "other, 1 of 13 subjects": ("virology",),
    }
    assert choose_suite("mmlu", MMLU) == SUITES["mmlu"]
    with pytest.raises(UsageError, match="subjects: cats is not in mmlu; use some of"):
        choose_suite("mmlu", ["virology", "cats"])
    with pytest.raises(UsageError, match=r"suite: 'mlu' is unknown; use mmlu, .*or mmlu-SUBJECT"):
        choose_suite("mlu")


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """`defuse evaluate` in a folder with small benchmarks: exit code, all it said."""
    monkeypatch.chdir(tmp_path)
    write_mmlu_csv(Path("data/mmlu"), ["anatomy", "virology", "philosophy"], count=4)
    write_wmdp_json(Path("data/wmdp"))
    Path("model").symlink_to(tiny_model_folder)

    def call(*arguments: str) -> tuple[int, str]:
        given = ["evaluate", "model", "--device", "cpu", "--data", "data", "--out", "out.json"]
        monkeypatch.setattr(sys, "argv", ["defuse", *given, *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out + said.err

    return call


def read() -> dict[str, Any]:
    return json.loads(Path("out.json").read_text())


def test_perturbed_mmlu_with_its_control_by_subject_and_group(run: Run) -> None:
    subjects = "anatomy,philosophy"
    code, said = run("--suite", "mmlu-perturbed", "--subjects", subjects, "--limit", "3",
                     "--few-shot", "2", "--reference", "model")  # fmt: skip
    assert code == 0, said
    found = read()
    assert [q["id"] for q in found["questions"]] == [
        f"{subject}/{i}" for subject in ("anatomy", "philosophy") for i in range(3)
    ]
    for question in found["questions"]:
        forget, control = (question["variants"][name] for name in ("forget", "control"))
        assert (forget["token"], control["token"]) == ("SARS-CoV-2", "Newcastle-upon-Tyne")
        assert forget["replaced"]["index"] == control["replaced"]["index"] != question["answer"]
    summary = found["summary"]
    assert summary["vulnerability"]["accuracy"]["value"] == 0
    assert set(summary["subjects"]) == {"anatomy", "philosophy"}
    whole = summary["groups"]["mmlu, 2 of 57 subjects"]
    assert {name: each["n"] for name, each in whole.items()} == dict.fromkeys(
        ("clean", "forget", "control"), 6
    )
    assert whole["clean"]["accuracy"] == summary["accuracy"]
    assert found["settings"]["sources"]["suite"] == "mmlu-perturbed"
    assert len(found["settings"]["few_shot"]) == 4
    assert "mmlu, 2 of 57" in " ".join(said.split())


def test_each_subject_is_asked_as_it_is_asked_alone(run: Run, tiny_model_folder: Path) -> None:
    assert run("--suite", "wmdp")[0] == 0
    found = read()
    loaded = load_model(str(tiny_model_folder), device="cpu")
    parts = load_parts(SUITES["wmdp"], "data")
    alone = [evaluate_questions(loaded, part.questions, part.settings) for part in parts]
    expected = [o for evaluation in alone for o in evaluation.answers[ORIGINAL]]
    assert [tuple(q["logprobs"]) for q in found["questions"]] == [o.logprobs for o in expected]
    groups = found["summary"]["groups"]
    assert groups["wmdp"]["clean"]["n"] == 12
    share = sum(o.is_correct for o in expected) / 12
    assert groups["wmdp"]["clean"]["accuracy"]["value"] == pytest.approx(share)


def test_a_single_subject_is_a_suite_of_its_own_and_takes_other_tokens(run: Run) -> None:
    Path("forget.txt").write_text("mumps\n")
    Path("control.txt").write_text("spoon\n")
    tokens = ["--perturb", "forget.txt", "--control", "control.txt", "--position", "before"]
    code, said = run("--suite", "mmlu-virology", *tokens)
    assert code == 0, said
    assert {q["variants"]["forget"]["token"] for q in read()["questions"]} == {"mumps"}
    assert "groups" not in read()["summary"]


REFUSED = {
    "no questions": ([], "give one of --questions FILE and --suite NAME"),
    "both": (["--suite", "wmdp", "--questions", "q.csv"], "give one of"),
    "file's option": (["--suite", "wmdp", "--subject", "x"], "subject: x goes with --questions"),
    "suite's option": (["--questions", "q.csv"], "data: data goes with --suite"),
    "unknown": (["--suite", "wmpd"], "suite: 'wmpd' is unknown"),
    "missing": (["--suite", "mmlu"], "lacks the test questions of 54 of 57 subjects"),
    "base without tokens": (
        ["--suite", "wmdp", "--reference", "model"],
        "reference: vulnerability needs",
    ),
    "few-shot": (["--suite", "wmdp", "--few-shot", "1"], "wmdp has no examples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_sentence(run: Run, case: str) -> None:
    options, message = REFUSED[case]
    code, said = run(*options)
    assert code == 2, said
    assert message in said
    assert said.count("\n") == 1
    assert not Path("out.json").exists()
