"""`defuse evaluate --suite tofu`, from Python and from the command line."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from defuse.cli import app
from defuse.evaluate.tasks.tofu.suite import Request, Suite, check, run
from defuse.utils.errors import UsageError
from tests.helpers.tofu_on_the_spot import write_tofu

PAGE = Path(__file__).parents[3] / "docs/tofu.md"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tofu(tmp_path_factory.mktemp("tofu")))


def test_a_model_equals_itself_and_its_file_of_answers_serves_as_retrained(
    data: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model, suite = str(tiny_model_folder), Suite(data, "forget05", 3, 2)
    request = Request([model], tmp_path / "first", suite, retrained=model)
    ((name, figures),) = run(check(request))
    assert name == model
    assert figures.quality[0].p_value == 1
    (file,) = (tmp_path / "first").iterdir()
    found = json.loads(file.read_text())
    assert found["summary"]["sets"]["forget"]["n"] == len(found["sets"]["forget"]) == 3
    assert found["about"]["suite"]["forget"] == "forget05"
    ((_, again),) = run(check(Request([model], tmp_path / "second", suite, retrained=str(file))))
    assert again == figures
    smaller = Request([model], tmp_path / "third", Suite(data, "forget05", 2, 2), str(file))
    with pytest.raises(UsageError, match=r"retrained: .* has answers to other forget questions"):
        check(smaller)
    with pytest.raises(UsageError, match="forget20"):
        check(Request([model], tmp_path / "third", Suite(forget="forget20")))


@pytest.mark.parametrize("option", ["--retrained", "--gold"])
def test_evaluate_asks_the_suite(
    data: str, tiny_model_folder: Path, tmp_path: Path, option: str
) -> None:
    model = str(tiny_model_folder)
    command = ["evaluate", model, "--suite", "tofu", "--data", data, "--subjects", "forget01"]
    command += ["--limit", "1", option, model, "--out", str(tmp_path / "answers")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "answers").glob("*.json")
    summary = json.loads(path.read_text())["summary"]
    assert summary["sets"]["retain"]["n"] == 1
    assert summary["quality"][0]["p_value"] == 1  # against itself


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--suite", "tofu", "--few-shot", "5"], "few-shot: 5 does not go with --suite tofu"),
        (["--suite", "tofu", "--subjects", "forget02"], "forget: 'forget02' is not a part of TOFU"),
        (["--suite", "mmlu", "--gold", "model"], "retrained: model goes with --suite tofu"),
    ],
)
def test_options_that_do_not_go_with_the_suite_are_refused(
    tiny_model_folder: Path, tmp_path: Path, option: list[str], sentence: str
) -> None:
    command = ["evaluate", str(tiny_model_folder), "--out", str(tmp_path / "answers"), *option]
    with pytest.raises(UsageError, match=sentence):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_the_page_s_python_example_runs(
    data: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    model = str(tiny_model_folder)
    places = {"locuslab/TOFU": data, "runs/unlearned": model, "runs/retrained": model}
    for name, local in places.items():
        code = code.replace(name, local).replace("size=100", "size=1")
    exec(compile(code, "tofu.md", "exec"), {})  # noqa: S102 (our own page)
    assert list((tmp_path / "runs/tofu").glob("*.json"))
