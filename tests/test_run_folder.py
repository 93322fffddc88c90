"""The folders of `defuse unlearn` and `defuse finetune`: what they keep, refuse and recognise."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from defuse.finetune import FineTuning
from defuse.finetune import run as finetuning
from defuse.run_folder import RunFolder
from defuse.unlearning import run as unlearning
from defuse.unlearning.recipe import Recipe, load_recipe
from defuse.utils.config import parse
from defuse.utils.distributed import ALONE
from defuse.utils.errors import Caution, UsageError
from defuse.utils.files import SUFFIX

OLD = Path(__file__).parent / "helpers" / "version_0_1_0"
SCHEMA = Path(__file__).parents[1] / "docs" / "schemas" / "run.json"
CHECKPOINT = "checkpoint-3"


@pytest.fixture
def work(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the texts, the model and the recipe of the records of version 0.1.0."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model_folder)
    Path("forget.txt").write_text("The virus is bad.\n" * 2)
    Path("retain.txt").write_text("A cat sleeps.\n" * 2)
    Path("terms.txt").write_text("virus\n")
    topic = {"name": "bio", "forget": "forget.txt", "retain": "retain.txt"}
    recipe = {
        "model": "model",
        "output": "out",
        "method": {"name": "rmu"},
        "noise": {"std": "0.3x"},
        "layer": 2,
        "steps": 2,
        "batch_size": 2,
        "device": "cpu",
        "topics": [{**topic, "coefficient": "4x", "triggers": "terms.txt"}],
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def recipe(*overrides: str) -> Recipe:
    return load_recipe(Path("recipe.yaml"), overrides)


def taught() -> finetuning.Plan:
    settings = FineTuning(epochs=2, batch_size=2)
    request = finetuning.Request("model", ("forget.txt",), Path("taught"), settings, device="cpu")
    return finetuning.check(request)


def record_of(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "run.json").read_text())


@pytest.mark.usefixtures("work")
def test_folders_of_version_0_1_0_are_known_as_finished() -> None:
    for name, folder in (("unlearn", "out"), ("finetune", "taught")):
        Path(folder).mkdir()
        shutil.copy(OLD / f"{name}.json", Path(folder, "run.json"))
    assert unlearning.finished(unlearning.check(recipe()))
    assert finetuning.finished(taught())
    with pytest.raises(UsageError, match="output: out holds another run, with other seed"):
        unlearning.finished(unlearning.check(recipe("seed=1")))


@pytest.mark.usefixtures("work")
def test_records_have_the_documented_form_and_say_the_same_as_those_of_version_0_1_0() -> None:
    unlearning.run(unlearning.check(recipe()))
    finetuning.run(taught())
    schema = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for verb, folder, same in (("unlearn", "out", "recipe"), ("finetune", "taught", "run")):
        old, new = json.loads((OLD / f"{verb}.json").read_text()), record_of(folder)
        if verb == "unlearn":  # fields that came later have no value
            assert parse(Recipe, new[same]) == parse(Recipe, old[same])
        else:
            assert {name: new[same][name] for name in old[same]} == old[same]
        added = new.keys() - old.keys()
        assert added - {"read", "check_up"} == {"schema_version", "verb", "files"}
        assert (new["schema_version"], new["verb"]) == (1, verb)
        assert not old.keys() - new.keys()
        schema.validate(old)
        schema.validate(new)
    assert not list(Path().glob("*.partial"))


def folder(**identity: int) -> RunFolder:
    return RunFolder(
        Path("out"), "output", "unlearn", identity, lambda record: record["run"], ("checkpoint-*",)
    )


def interrupted(run: RunFolder, *checkpoints: str) -> None:
    def work() -> None:
        with run.work(ALONE) as unfinished:
            for name in checkpoints:
                (unfinished / name).mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()


@pytest.mark.usefixtures("work")
def test_what_a_kill_left_half_written_is_removed() -> None:
    with folder(seed=1).work(ALONE) as unfinished:
        (unfinished / CHECKPOINT).mkdir()
        (unfinished / f".run.json.half{SUFFIX}").touch()
    assert not Path("out.partial").exists()


@pytest.mark.usefixtures("work")
def test_what_a_kill_at_the_very_end_left_is_removed_by_the_next_look() -> None:
    """The output is there, and its unfinished work was not removed yet, or only in part."""
    folder(seed=1).write(lambda _: None, {"run": {"seed": 1}})
    interrupted(folder(seed=1), CHECKPOINT)
    assert Path("out.partial", CHECKPOINT).exists()
    assert folder(seed=1).is_finished()
    assert not Path("out.partial").exists()
    Path("out.partial").mkdir()
    Path("out.partial", "lock").touch()
    assert folder(seed=1).is_finished()
    assert not Path("out.partial").exists()


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("mine", ["thesis.txt", "run.json"])
def test_a_finished_run_leaves_work_of_others_beside_it(mine: str) -> None:
    folder(seed=1).write(lambda _: None, {"run": {"seed": 1}})
    Path("out.partial").mkdir()
    Path("out.partial", mine).write_text("mine")
    with pytest.warns(Caution, match=rf"out\.partial/{mine} is"):
        assert folder(seed=1).is_finished()
    assert [path.name for path in Path("out.partial").iterdir()] == [mine]


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("strange", ["thesis.txt", ".hidden", "run.json"])
def test_a_folder_of_the_users_is_refused_and_left_as_it_is(strange: str) -> None:
    Path("out.partial").mkdir()
    Path("out.partial", strange).write_text("mine")
    for use in (folder(seed=1).is_finished, folder(seed=1).work(ALONE).__enter__):
        with pytest.raises(UsageError, match=rf"output: .*out\.partial/{strange} is"):
            use()
    assert Path("out.partial", strange).read_text() == "mine"
    assert len(list(Path("out.partial").iterdir())) == 1


@pytest.mark.usefixtures("work")
def test_a_link_is_refused_and_not_followed() -> None:
    Path("mine").mkdir()
    Path("mine", CHECKPOINT).mkdir()
    Path("out.partial").symlink_to("mine")
    with pytest.raises(UsageError, match=r"out\.partial, where unfinished work goes, is a link"):
        folder(seed=1).is_finished()
    assert Path("mine", CHECKPOINT).is_dir()


@pytest.mark.usefixtures("work")
def test_a_run_that_is_refused_removes_nothing_of_the_one_at_work() -> None:
    with folder(seed=1).work(ALONE):
        before = sorted(Path("out.partial").iterdir())
        with pytest.raises(UsageError, match="in use by another process"):
            folder(seed=1).work(ALONE).__enter__()
        assert sorted(Path("out.partial").iterdir()) == before


@pytest.mark.usefixtures("work")
def test_unfinished_work_of_another_run_or_verb_is_refused_and_kept() -> None:
    interrupted(folder(seed=1, steps=3), CHECKPOINT)
    with pytest.raises(UsageError, match="beginning of a run with other seed; finish or remove it"):
        folder(seed=2, steps=3).is_finished()
    record = record_of("out.partial")
    Path("out.partial/run.json").write_text(json.dumps({"run": record["run"]}))  # as 0.1.0 did
    with pytest.raises(UsageError, match="beginning of a run of `defuse finetune`"):
        folder(seed=1, steps=3).is_finished()
    assert Path("out.partial", CHECKPOINT).is_dir()


@pytest.mark.usefixtures("work")
def test_an_interruption_before_the_first_checkpoint_leaves_nothing_behind() -> None:
    interrupted(folder(seed=1))
    assert not Path("out.partial").exists()


def test_the_record_of_the_model_that_was_read_is_replaced(tmp_path: Path) -> None:
    """An unlearned copy of a fine-tuned model brings that model's run.json along."""

    def fill(place: Path) -> None:
        (place / "run.json").write_text("{}")

    folder = RunFolder(tmp_path / "out", "output", "unlearn", {"n": 1}, lambda r: r["read"], ())
    folder.write(fill, {"read": {"n": 1}})
    assert folder.is_finished()
    assert "run.json" not in folder.record()["files"]
