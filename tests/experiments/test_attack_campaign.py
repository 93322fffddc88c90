"""Several models under attack: the lab's and the real model's, made, attacked and set together."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from defuse.attacks.registry import ATTACKS, make_configs
from defuse.cli import app
from defuse.experiments.core.attacks import Campaign, announce, attack, carry_out, report
from defuse.experiments.elements import attacks as real
from defuse.experiments.elements.experiment import Bench
from defuse.experiments.elements.questions import build_material
from defuse.experiments.elements.terms import Terms
from defuse.experiments.synthetic import attacks as lab
from defuse.experiments.synthetic.grid import Run, Setting
from defuse.experiments.synthetic.models import SHIPPED, SHIPPED_FORGET
from defuse.experiments.synthetic.workers import Place
from defuse.experiments.synthetic.world import build_world
from defuse.models.load import LoadedModel
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer

SHORT = Run("rmu", "hidden_mse", 0, tried=Setting(steps=2))
NOISED = replace(SHORT, noise="10x")


def quick(campaign: Campaign) -> Campaign:
    """The same with one quick attack."""
    chosen = make_configs(["quantise"], ["quantise.bits=[2]"])
    subjects = [replace(s, request=replace(s.request, configs=chosen)) for s in campaign.subjects]
    return replace(campaign, subjects=subjects)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(build_world(), SHIPPED_FORGET, "reported", SHIPPED, tmp_path)


def test_the_lab_attacks_its_pair_and_unlearned_models_without_and_with_noise(place: Place):
    runs = lab.attack_grid(full=False)
    campaign = lab.make_campaign(runs, place)
    names = [subject.name for subject in campaign.subjects]
    assert names[:2] == ["base", "gold"]
    assert [(run.method, run.arm) for run in runs] == [
        (method, arm) for method in ("rmu", "simnpo") for arm in ("none", "rna")
    ]
    assert campaign.pairs == [(runs[0].name, runs[1].name), (runs[2].name, runs[3].name)]
    assert list(campaign.subjects[0].request.configs) == list(ATTACKS)
    assert {run.seed for run in lab.attack_grid(full=True)} == {0, 1, 2}
    assert {run.method for run in lab.attack_grid(full=True, only=["npo"])} == {"npo"}


def test_models_are_made_once_attacked_in_processes_and_reported(place: Place, capsys):
    campaign = quick(lab.make_campaign([SHORT, NOISED], place))
    base, gold, plain, _ = campaign.subjects
    with pytest.raises(UsageError, match=r"report: nothing was attacked in .* yet; run it first"):
        report(campaign, Console())
    attack(plain)
    report(campaign, Console())
    assert f"|  | n | {SHORT.name} |" in (campaign.folder / "attacks.md").read_text()
    assert not base.request.out.exists()
    model = Path(plain.request.model) / "model.safetensors"
    written = model.stat().st_mtime_ns
    (plain.request.out / "quantise.json").unlink()
    attack(plain)
    assert model.stat().st_mtime_ns == written
    assert [subject.name for subject in campaign.todo] == ["base", "gold", NOISED.name]
    carry_out(campaign, announce(campaign, place.bench().base.model, 2, Console()), jobs=2)
    assert "3 of 4 models to attack" in capsys.readouterr().out
    assert not campaign.todo
    report(campaign, Console())
    table = (campaign.folder / "attacks.md").read_text()
    assert f"|  | n | base | gold | {SHORT.name} | {NOISED.name} |" in table
    assert f"| {NOISED.name} | quantise: 2 bits | forget | 54 |" in table
    assert (gold.request.out / "report.html").is_file()
    data = json.loads((campaign.folder / "results.json").read_text())
    assert set(data["models"]) == {subject.name for subject in campaign.subjects}
    assert base.todo == []


def test_the_real_model_is_asked_in_its_own_way(tmp_path: Path):
    material = build_material()
    loaded = LoadedModel(build_llama(), build_tokenizer(), "tiny")
    bench = Bench(loaded, material.reported, Terms((), ()), tmp_path)
    runs = real.attack_grid(full=False)
    campaign = real.make_campaign(runs, bench, material)
    request = campaign.subjects[0].request
    assert [len(questions) for questions in request.data.sets.values()] == list(real.ASKED)
    assert request.data.settings.score == "cloze"
    assert set(request.configs) == set(ATTACKS)
    assert campaign.pairs == [(runs[0].name, runs[1].name)]
    assert len(real.attack_grid(full=True)) == 8


@pytest.mark.parametrize("command", [["lab"], ["real"]])
def test_attacks_are_not_tuned(command: list[str], tmp_path: Path):
    given = [*command, "--attacks", "--tune", "--output", str(tmp_path / "out")]
    with pytest.raises(UsageError, match="leave out --tune or --attacks"):
        CliRunner().invoke(app, given, catch_exceptions=False)


def test_the_plan_says_how_long_and_writes_nothing(tmp_path: Path):
    given = ["lab", "--attacks", "--plan", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    assert "6 of 6 models to attack" in result.output
    assert not list((tmp_path / "out").glob("attacks/*"))
