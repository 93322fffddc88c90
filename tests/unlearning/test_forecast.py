"""What `--plan` says, and what is refused or cautioned before the first step."""

import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from defuse.cli import app
from defuse.unlearning import forecast as module
from defuse.unlearning.recipe import load_recipe
from defuse.unlearning.run import check
from defuse.utils.errors import Caution, UsageError

USAGE = namedtuple("USAGE", "total used free")


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("forget.txt").write_text("The virus is bad.\n" * 40)
    Path("retain.txt").write_text("A cat sleeps.\n" * 50)
    topic = {"name": "bio", "forget": "forget.txt", "retain": "retain.txt", "weight": 5}
    fields = {
        "model": str(tiny_model_folder),
        "output": "out",
        "method": {"name": "rmu"},
        "layer": 1,
        "train": {"layers": [1], "parameters": "mlp.down_proj"},
        "steps": 10,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "device": "cpu",
        "topics": [{**topic, "coefficient": "4x"}],
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(fields))
    return Path("recipe.yaml")


def checked(*overrides: str):
    return check(load_recipe(Path("recipe.yaml"), overrides))


def test_a_plan_says_what_is_done_and_does_nothing() -> None:
    arguments = ["unlearn", "recipe.yaml", "--plan"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    for said in ("topic bio with 40 forget and 50 retain texts", "for 10 steps", "memory: about"):
        assert said in result.output
    assert not list(Path().glob("out*"))


def test_parameters_and_bytes_are_counted(tiny_model_folder: Path) -> None:
    """The tiny Llama: 32 wide, 48 in the MLP; its file has to be written anew, and two states."""
    found = checked().forecast
    file = (tiny_model_folder / "model.safetensors").stat().st_size
    assert found.trained == 32 * 48
    assert found.disk == file + 2 * 12 * 32 * 48
    assert checked("checkpoint_every=0").forecast.disk == file
    assert found.read < checked("method.name=npo", "topics.0.coefficient=null").forecast.read


def test_the_work_of_a_step_grows_with_its_losses() -> None:
    """Losses on logits run all blocks and the head; those on hidden states end at the layer."""
    small = checked().forecast.flops
    assert checked("retain.loss=logit_kl").forecast.flops > 2 * small
    assert checked("batch_size=8").forecast.flops == pytest.approx(2 * small)


def test_a_disk_without_room_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: USAGE(0, 0, 1000))
    with pytest.raises(UsageError, match=r"output: out takes about 1 MB .* only 1 MB are free"):
        checked()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["learning_rate=5e-5"], "learning_rate: 5e-05 for 10 steps is meant for models of 7B"),
        (["steps=400"], "each of its 50 rows is used 32 times"),
        ([], r"topics.bio.forget: its texts have \d+ tokens on average; packed: true"),
    ],
)
def test_settings_that_will_hardly_work_are_said(overrides: list[str], said: str) -> None:
    found = [sentence for sentence in checked(*overrides).cautions if sentence]
    assert any(re.search(said, sentence) for sentence in found)


def test_good_settings_are_without_a_word() -> None:
    assert checked("topics.0.packed=true", "topics.0.retain_length=16").cautions == ()


def test_a_coefficient_for_another_model_is_said_once_it_is_measured() -> None:
    from defuse.unlearning.run import run

    with pytest.warns(Caution, match=r"coefficient: 1000 is .* times the mean norm .* write 4x"):
        run(checked("topics.0.coefficient=1000", "steps=1"))


def test_the_forecast_names_a_time_of_this_machine() -> None:
    lines = list(checked().forecast.lines(torch.device("cpu")))
    assert lines[-1] == "time: about 0 s of training on this machine"
