"""`defuse tofu` as a user runs it: one run of two seeds, which the tests share and add to."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from defuse.cli import app
from defuse.evaluate.tasks.tofu.answers import read_answers
from defuse.evaluate.tasks.tofu.data import SETS
from defuse.experiments.tofu.job import read_data
from defuse.experiments.tofu.recipe import load_recipe
from defuse.utils.errors import UsageError
from tests.helpers.schemas import validate
from tests.helpers.tofu_on_the_spot import write_tofu

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "src/defuse/experiments/tofu/smollm2.yaml"
OLD = ROOT / "tests/helpers/version_0_1_0/tofu"
DEFENCES = {"none": {}, "rna": {"noise": {"std": "1x"}}, "mixing": {"topic": {"mix": 0.5}}}


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> dict[str, Any]:
    """A recipe on a small TOFU and a tiny model."""
    folder = tmp_path_factory.mktemp("tofu")
    return {
        "model": str(tiny_model_folder),
        "output": str(folder / "out"),
        "data": str(write_tofu(folder / "tofu")),
        "forget": "forget01",
        "retain_authors": 2,
        "asked": 2,
        "new_tokens": 4,
        "finetune": {"epochs": 1, "learning_rate": 0.01, "batch_size": 16, "checkpoint_every": 0},
        "unlearn": {
            "method": {"name": "rmu"},
            "layer": 2,
            "steps": 2,
            "learning_rate": 0.01,
            "topic": {"coefficient": "4x", "weight": 1, "forget_length": 64},
        },
        "defences": DEFENCES,
        "seeds": [1, 2],
    }


def write_recipe(folder: Path, fields: dict[str, Any], **changes: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**fields, **changes}, sort_keys=False))
    return str(path)


def run(recipe: str, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["tofu", recipe, *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def recipe(fields: dict[str, Any]) -> str:
    """The recipe's file, carried out."""
    path = write_recipe(Path(fields["output"]).parent, fields)
    assert "pretrained" in run(path)
    return path


@pytest.fixture
def output(recipe: str) -> Path:
    return Path(load_recipe(Path(recipe)).output)


def test_one_recipe_teaches_unlearns_and_compares(output: Path) -> None:
    document = json.loads((output / "results.json").read_text())
    validate("tofu", document)
    rows = document["rows"]
    assert [row["label"] for row in rows] == [
        "pretrained",
        "reference: taught all",
        *(f"unlearned: {name}" for name in DEFENCES),
        "retrained: taught the retain set alone",
    ]
    assert [row["added"] is not None for row in rows] == [False, False, True, True, True, False]
    pretrained, reference, retrained = (rows[place]["figures"]["sets"] for place in (0, 1, 5))
    assert [pretrained[name]["n"] for name in SETS] == [2, 2, 1, 1]
    found = [sets["retain"]["probability"]["value"] for sets in (pretrained, reference, retrained)]
    assert found[0] < min(found[1:])
    table = (output / "results.md").read_text()
    assert table.count("\n| ") == 7
    assert "forget 2, retain 2, real_authors 1, world_facts 1" in table


def test_every_seed_teaches_and_unlearns_anew(output: Path) -> None:
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert [row["figures"]["runs"] for row in rows] == [2] * 6
    assert [len(row["figures"]["quality"]) for row in rows] == [2, 2, 2, 2, 2, 0]
    files = (output / f"answers/seed{seed}/reference.json" for seed in (1, 2))
    one, other = (json.loads(file.read_text())["result"]["sets"]["forget"] for file in files)
    assert one[0]["logprob"] != other[0]["logprob"]


def test_unlearned_models_are_removed_after_they_are_asked(output: Path) -> None:
    models = sorted(path.name for path in (output / "models/seed1").iterdir())
    assert models == ["reference", "retrained"]


def test_evaluate_takes_the_answers_of_the_retrained_model(output: Path) -> None:
    assert list(read_answers(output / "answers/seed1/retrained.json")) == list(SETS)


def test_only_missing_work_is_done(recipe: str, output: Path) -> None:
    (output / "answers/seed1/retrained.json").unlink()
    records = {path: path.read_bytes() for path in (output / "runs").iterdir()}
    table = (output / "results.md").read_text()
    assert "1 of 11 models to do." in run(recipe)
    changed = [path.stem for path, was in records.items() if path.read_bytes() != was]
    assert changed == ["seed1-retrained"]
    assert (output / "results.md").read_text() == table
    with pytest.raises(UsageError, match=r"output: .*pretrained\.json belongs to other asked"):
        run(recipe, "asked=3")


def test_a_new_defence_is_added_to_finished_ones(recipe: str, output: Path) -> None:
    late = "defences.late={method: {name: rsv}, topic: {coefficient: 2x}}"
    planned = run(recipe, late, "keep_models=true", "seeds=[1]", "--plan")
    assert "3. seed 1, retrained (finished)" in planned
    assert "7. seed 1, late (to do)" in planned
    assert not (output / "answers/seed1/late.json").exists()
    run(recipe, late, "keep_models=true", "seeds=[1]")
    assert (output / "models/seed1/late/run.json").is_file()


def test_a_failed_model_is_recorded_and_the_others_continue(
    recipe: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["defences={bad: {steps: 3}, good: {steps: 1}}", "seeds=[1]"]
    monkeypatch.setattr("defuse.experiments.tofu.job.ask_part", broken_for("bad"))
    assert "failed: seed 1, bad: RuntimeError: broken" in run(recipe, *more, code=1)
    record = json.loads((output / "runs/seed1-bad.json").read_text())["result"]
    assert record["error"] == "RuntimeError: broken"
    assert (output / "answers/seed1/good.json").is_file()
    monkeypatch.undo()
    assert "seed 1, bad (failed)" in run(recipe, *more, "--plan")
    assert "--retry-failed" in run(recipe, *more, "--report", code=1)
    assert "failed" not in run(recipe, *more, "--retry-failed")


def broken_for(name: str):
    from defuse.experiments.tofu import job

    original = job.ask_part

    def ask(loaded, *arguments):
        if Path(loaded.name).name == name:
            raise RuntimeError("broken")
        return original(loaded, *arguments)

    return ask


def test_answers_of_version_0_1_0_are_read(fields: dict[str, Any], tmp_path: Path) -> None:
    """Its base model and its arm RNA, which are now the pretrained model and the defence rna."""
    for name, file in (("base", "base.json"), ("RNA", "seed1/RNA.json")):
        document = json.loads((OLD / f"{name}.json").read_text())
        document["about"] |= {name: fields[name] for name in ("model", "data")}
        path = tmp_path / "out/answers" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    recipe = write_recipe(tmp_path, fields, output=str(tmp_path / "out"), seeds=[1])
    planned = run(recipe, "--plan")
    assert "1. pretrained (finished)" in planned
    assert "5. seed 1, rna (finished)" in planned
    assert "4 of 6 models to do." in planned
    run(recipe, "--report")
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["pretrained", "unlearned: rna"]
    with pytest.raises(UsageError, match=r"RNA\.json belongs to other unlearn; name a new folder"):
        run(recipe, "unlearn.steps=3", "--plan")


def test_a_plan_needs_no_data_and_says_what_is_missing(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    place = {"output": str(tmp_path / "out"), "data": str(tmp_path / "nowhere")}
    (tmp_path / "nowhere").mkdir()
    recipe = write_recipe(tmp_path, fields, **place)
    planned = run(recipe, "--plan")
    assert "11. seed 2, mixing (to do)" in planned or "11. seed 2, rna (to do)" in planned
    assert "11 of 11 models to do.\nNot ready: data: " in planned
    assert "has no forget01.json; give TOFU's folder, or locuslab/TOFU" in planned
    with pytest.raises(UsageError, match=r"has no forget01\.json"):
        run(recipe)
    assert not (tmp_path / "out").exists()


def test_a_report_needs_something_finished(fields: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, fields, output=str(tmp_path / "out"))
    with pytest.raises(UsageError, match="report: nothing is finished in"):
        run(recipe, "--report")


def test_the_spelling_of_version_0_1_0_is_read(fields: dict[str, Any], tmp_path: Path) -> None:
    old = {name: value for name, value in fields.items() if name != "defences"}
    path = Path(write_recipe(tmp_path, old, arms={"none": {}, "RNA": {"noise": {"std": "1x"}}}))
    assert list(load_recipe(path, ["defences.late={steps: 3}"]).defences) == ["none", "RNA", "late"]
    assert list(load_recipe(Path("smollm2"), ["arms={none: {}}"]).defences) == ["none"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"forget": "forget20"}, "forget: 'forget20' is refused"),
        ({"defences": {"reference": {}}}, "defences: 'reference' is no name"),
        ({"defences": {"gold": {}}}, "defences: 'gold' is no name"),
        ({"defences": {"none": {"noise": {"std": "loud"}}}}, "noise"),
        ({"unlearn": {"method": {"name": "rmu"}, "seed": 3}}, r"unlearn\.seed: follows"),
        ({"unlearn": {"method": {"name": "none"}}}, r"unlearn\.method"),
        ({"finetune": {"epochs": 0}}, r"finetune\.epochs"),
        ({"finetune": {"seed": 1}}, r"finetune\.seed: follows from seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"skip_authors": -1}, "skip_authors"),
        ({"more": 1}, "has no field 'more'"),
    ],
)
def test_wrong_recipes_are_refused_by_field(
    fields: dict[str, Any], tmp_path: Path, changes: dict, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        load_recipe(Path(write_recipe(tmp_path, fields, **changes)))


def test_questions_are_about_the_taught_authors(fields: dict[str, Any], tmp_path: Path) -> None:
    """Of three forgotten authors one after the first; only two retained ones have questions."""
    chosen = {"forget": "forget10", "forget_authors": 1, "skip_authors": 1, "retain_authors": 1}

    def load(**changes: object):
        return load_recipe(Path(write_recipe(tmp_path, {**fields, "asked": 4}, **changes)))

    data = read_data(load(**chosen))
    assert {pair.answer.partition(" wrote")[0] for pair in data.forget} == {"Bo Quip"}
    assert {pair.answer.partition(" wrote")[0] for pair in data.retain} == {"Ed Moon"}
    for name, author in (("forget", "Bo Quip"), ("retain", "Ed Moon")):
        questions = [item.question for item in data.sets[name]]
        assert questions == [f"What is book {i} of {author}?" for i in (0, 5, 10, 15)]
    with pytest.raises(UsageError, match="leaves no author"):
        read_data(load(skip_authors=2))
    with pytest.raises(UsageError, match="has no question about the taught authors"):
        read_data(load(**{**chosen, "skip_authors": 2}))


def test_the_shipped_recipe_is_found_by_its_name() -> None:
    recipe = load_recipe(Path("smollm2"), ["seeds=[1,2,3]"])
    assert (recipe.forget, recipe.seeds) == ("forget01", [1, 2, 3])
    assert list(recipe.defences) == ["none", "rna", "mixing"]


def test_the_page_shows_the_shipped_recipe() -> None:
    page = (ROOT / "docs/tofu.md").read_text("utf-8")
    assert f"```yaml\n{SHIPPED.read_text('utf-8')}```\n" in page
