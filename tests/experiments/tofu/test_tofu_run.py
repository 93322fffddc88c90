"""The whole way, as a user runs it: `defuse tofu RECIPE`, stopped and started; and the suite."""

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

from defuse.cli import app
from defuse.experiments.tofu import experiment
from defuse.experiments.tofu.data import SETS
from defuse.experiments.tofu.job import Suite, run_suite
from defuse.experiments.tofu.recipe import load_whole_way
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.helpers.tofu_on_the_spot import write_tofu

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "src/defuse/experiments/tofu/smollm2.yaml"


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """A folder with a small TOFU and a tiny model."""
    folder = tmp_path_factory.mktemp("whole-way")
    write_tofu(folder / "tofu")
    build_llama().save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    return folder


def write_recipe(place: Path, output: Path, **changes: object) -> str:
    recipe = {
        "model": str(place / "model"),
        "output": str(output),
        "data": str(place / "tofu"),
        "forget": "forget01",
        "retain_authors": 2,
        "asked": 4,
        "new_tokens": 4,
        "finetune": {"epochs": 1, "learning_rate": 0.01, "batch_size": 16, "checkpoint_every": 0},
        "unlearn": {
            "method": {"name": "rmu"},
            "layer": 2,
            "steps": 2,
            "learning_rate": 0.01,
            "topic": {"coefficient": "4x", "weight": 1, "forget_length": 64},
        },
        "arms": {"none": {}, "RNA": {"noise": {"std": "1x"}}, "mixed": {"topic": {"mix": 0.5}}},
        **changes,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(path)


def run(recipe: str, *overrides: str) -> str:
    result = CliRunner().invoke(app, ["tofu", recipe, *overrides], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_whole_way_is_one_recipe(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    recipe = write_recipe(place, output)
    assert "model" in run(recipe)
    rows = json.loads((output / "results.json").read_text())["rows"]
    labels = [row["label"] for row in rows]
    assert labels[:2] == ["base", "taught all"]
    assert labels[2:] == [
        "unlearned: none",
        "unlearned: RNA",
        "unlearned: mixed",
        "gold: taught the retain part alone",
    ]
    assert [row["added"] is not None for row in rows] == [False, False, True, True, True, False]
    assert [len(row["figures"]["quality"]) for row in rows] == [1, 1, 1, 1, 1, 0]
    base, taught, gold = (rows[place]["figures"]["sets"] for place in (0, 1, 5))
    assert [base[name]["n"] for name in SETS] == [4, 4, 1, 1]
    chances = [sets["retain"]["probability"]["value"] for sets in (base, taught, gold)]
    assert chances[0] < min(chances[1:])
    table = (output / "results.md").read_text()
    assert table.count("\n| ") == 7
    assert "forget 4, retain 4, real_authors 1, world_facts 1" in table
    models = sorted(path.name for path in (output / "models/seed1").iterdir())
    assert models == ["full", "gold"]  # the unlearned ones have been asked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which models were asked, as it goes."""
    stages: list[str] = []
    original = experiment._ask
    monkeypatch.setattr(
        experiment,
        "_ask",
        lambda way, model, what: stages.append(what) or original(way, model, what),
    )
    return stages


def test_what_is_finished_is_not_done_again(place: Path, tmp_path: Path, asked: list[str]) -> None:
    output = tmp_path / "out"
    recipe = write_recipe(place, output, arms={"none": {}})
    run(recipe)
    (output / "answers/seed1/gold.json").unlink()
    asked.clear()
    before = (output / "results.md").read_text()
    run(recipe)
    assert asked == ["seed 1: asking gold"]
    assert (output / "results.md").read_text() == before
    run(recipe, "arms.late={method: {name: rsv}, topic: {coefficient: 2x}}", "keep_models=true")
    assert asked[1:] == ["seed 1: asking late"]
    assert (output / "models/seed1/late/run.json").is_file()
    with pytest.raises(UsageError, match="holds answers with other asked"):
        run(recipe, "asked=3")


def test_two_seeds_teach_and_unlearn_anew(place: Path, tmp_path: Path, asked: list[str]) -> None:
    output = tmp_path / "out"
    run(write_recipe(place, output, seeds=[1, 2], arms={"none": {}}, asked=2))
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert [row["figures"]["runs"] for row in rows] == [2] * 4
    assert len(rows[2]["figures"]["quality"]) == 2
    assert sum("asking base" in each for each in asked) == 1
    one, other = (json.loads((output / f"answers/seed{s}/full.json").read_text()) for s in (1, 2))
    assert one["sets"]["forget"][0]["logprob"] != other["sets"]["forget"][0]["logprob"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"forget": "forget20"}, "forget: 'forget20' is refused"),
        ({"arms": {"full": {}}}, "arms: 'full' names no arm"),
        ({"arms": {"none": {"noise": {"std": "loud"}}}}, "noise"),
        ({"unlearn": {"method": {"name": "rmu"}, "seed": 3}}, r"unlearn\.seed: follows"),
        ({"unlearn": {"method": {"name": "none"}}}, r"unlearn\.method"),
        ({"finetune": {"epochs": 0}}, r"finetune\.epochs"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"skip_authors": -1}, "skip_authors"),
        ({"more": 1}, "has no field 'more'"),
    ],
)
def test_wrong_recipes_are_refused_by_field(
    place: Path, tmp_path: Path, changes: dict, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        load_whole_way(Path(write_recipe(place, tmp_path / "out", **changes)))
    assert not (tmp_path / "out").exists()


def test_what_is_asked_is_about_the_authors_taught(place: Path, tmp_path: Path) -> None:
    """Of three forgotten authors one after the first; only two retained ones have questions."""
    chosen = {"forget": "forget10", "forget_authors": 1, "skip_authors": 1, "retain_authors": 1}
    recipe = load_whole_way(Path(write_recipe(place, tmp_path / "out", **chosen)))
    material = experiment.read_material(recipe)
    assert {pair.answer.partition(" wrote")[0] for pair in material.forget} == {"Bo Quip"}
    assert {pair.answer.partition(" wrote")[0] for pair in material.retain} == {"Ed Moon"}
    for name, author in (("forget", "Bo Quip"), ("retain", "Ed Moon")):
        items = material.sets[name]
        assert [item.question for item in items] == [
            f"What is book {i} of {author}?" for i in (0, 5, 10, 15)
        ]
    unasked = load_whole_way(Path(write_recipe(place, tmp_path / "out", skip_authors=2)))
    with pytest.raises(UsageError, match="leaves no author"):
        experiment.read_material(unasked)
    last = {**chosen, "skip_authors": 2}
    with pytest.raises(UsageError, match="has no question about the taught authors"):
        experiment.read_material(
            load_whole_way(Path(write_recipe(place, tmp_path / "out", **last)))
        )


def test_the_shipped_recipe_is_sound_and_goes_by_its_name() -> None:
    recipe = load_whole_way(Path("smollm2"), ["seeds=[1,2,3]"])
    assert (recipe.forget, recipe.seeds) == ("forget01", [1, 2, 3])


def test_the_page_shows_the_shipped_recipe() -> None:
    assert f"```yaml\n{SHIPPED.read_text('utf-8')}```\n" in (ROOT / "docs/tofu.md").read_text(
        "utf-8"
    )


def test_the_suite_asks_any_models(place: Path, tmp_path: Path) -> None:
    """A model is not told from itself; its file serves as the gold standard of another call."""
    model, suite = str(place / "model"), Suite(str(place / "tofu"), "forget05", 3, 2)
    ((name, figures),) = run_suite([model], tmp_path / "first", suite, gold=model)
    assert name == model
    assert figures.quality[0].p_value == 1
    (file,) = (tmp_path / "first").iterdir()
    found = json.loads(file.read_text())
    assert found["summary"]["sets"]["forget"]["n"] == len(found["sets"]["forget"]) == 3
    assert found["about"]["suite"]["forget"] == "forget05"
    ((_, again),) = run_suite([model], tmp_path / "second", suite, gold=str(file))
    assert again == figures
    smaller = Suite(suite.data, "forget05", 2, 2)
    with pytest.raises(UsageError, match=r"gold: .* answered other forget questions"):
        list(run_suite([model], tmp_path / "third", smaller, gold=str(file)))
    with pytest.raises(UsageError, match="forget20"):
        list(run_suite([model], tmp_path / "third", Suite(forget="forget20")))


def test_evaluate_asks_the_suite(place: Path, tmp_path: Path) -> None:
    """As `defuse evaluate --suite tofu`, the gold standard being the model itself."""
    model, data = str(place / "model"), str(place / "tofu")
    command = ["evaluate", model, "--suite", "tofu", "--data", data, "--subjects", "forget01"]
    command += ["--limit", "3", "--gold", model, "--out", str(tmp_path / "answers")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "answers").glob("*.json")
    (expected,) = run_suite([model], tmp_path / "again", Suite(data, "forget01", 3), gold=model)
    summary = json.loads(path.read_text())["summary"]
    assert summary["utility"]["value"] == expected[1].utility.value  # type: ignore[union-attr]
    assert summary["quality"][0]["p_value"] == 1  # against itself


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--suite", "tofu", "--few-shot", "5"], "few-shot: 5 does not go with --suite tofu"),
        (["--suite", "tofu", "--subjects", "forget02"], "forget: 'forget02' is no part of TOFU"),
        (["--suite", "mmlu", "--gold", "model"], "gold: model goes with --suite tofu"),
    ],
)
def test_what_does_not_go_with_the_suite_is_refused(
    place: Path, tmp_path: Path, option: list[str], sentence: str
) -> None:
    command = ["evaluate", str(place / "model"), "--out", str(tmp_path / "answers"), *option]
    with pytest.raises(UsageError, match=sentence):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_the_page_s_python_example_runs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/tofu.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    places = {"locuslab/TOFU": "tofu", "runs/unlearned": "model", "runs/gold": "model"}
    for name, local in places.items():
        code = code.replace(name, str(place / local)).replace("size=100", "size=2")
    exec(compile(code, "tofu.md", "exec"), {})  # noqa: S102 (our own page)
    assert list((tmp_path / "runs/tofu").glob("*.json"))
