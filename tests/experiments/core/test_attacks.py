"""An experiment's models under attack: made, attacked in processes, and reported together."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from defuse.attacks.registry import make_configs
from defuse.experiments.core.attacks import (
    AttackPlan,
    attack,
    report_attacks,
    run_attacks,
)
from defuse.experiments.core.job import Request
from defuse.experiments.synthetic.grid import Point, Setting
from defuse.experiments.synthetic.scenario import Options, attack_plan
from defuse.utils.errors import UsageError
from defuse.utils.runner import Runner

SHORT = Point(("rmu", "hidden_mse"), 0, tried=Setting(steps=2))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> AttackPlan:
    """One quick attack on the lab's pair and on two short runs."""
    folder = tmp_path_factory.mktemp("lab")
    whole = attack_plan(Options(output=folder))
    model = whole.scenario.model.name
    runs = [point.run(model, folder) for point in (SHORT, replace(SHORT, rna="10x"))]
    data = replace(whole.data, forget=whole.data.forget[:12], retain=whole.data.retain[:12])
    return replace(
        whole,
        scenario=whole.scenario.with_runs(runs),
        data=data,
        attacks=("quantise",),
        settings={"quantise": {"bits": [2]}},
    )


def test_models_are_made_once_attacked_in_processes_and_reported(
    plan: AttackPlan, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(UsageError, match=r"report: nothing is attacked in .* yet; run it first"):
        report_attacks(plan, Console())
    plain, noised = plan.scenario.runs
    requests = plan.requests()
    attack(requests[plain.name], plain)
    report_attacks(plan, Console())
    assert f"|  | n | {plain.name} |" in (plan.folder / "attacks.md").read_text()
    assert not requests["reference"].out.exists()
    model = Path(requests[plain.name].model) / "model.safetensors"
    written = model.stat().st_mtime_ns
    (requests[plain.name].out / "quantise.json").unlink()
    attack(requests[plain.name], plain)
    assert model.stat().st_mtime_ns == written
    run_attacks(plan, Request(runner=Runner("processes", 2)), Console())
    assert "3 of 4 models to attack: about" in capsys.readouterr().out
    table = (plan.folder / "attacks.md").read_text()
    assert f"|  | n | reference | retrained | {plain.name} | {noised.name} |" in table
    assert f"| {noised.name} | quantise: 2 bits | forget | 12 |" in table
    data = json.loads((plan.folder / "results.json").read_text())
    assert set(data["models"]) == {"reference", "retrained", plain.name, noised.name}
    assert data["schema_version"] == 1
    run_attacks(plan, Request(report=True), Console())
    assert "0 of 4 models to attack." in capsys.readouterr().out


def test_results_of_other_settings_are_refused(plan: AttackPlan):
    other = replace(plan, settings={"quantise": {"bits": [3]}})
    with pytest.raises(UsageError, match="other settings"):
        run_attacks(other, Request(plan=True), Console())


def test_folders_of_version_0_1_0_are_read(plan: AttackPlan, tmp_path: Path):
    moved = replace(plan, scenario=replace(plan.scenario, folder=tmp_path))
    (tmp_path / "attacks" / "gold").mkdir(parents=True)
    assert list(moved.requests())[:2] == ["reference", "gold"]


def test_settings_of_attacks_have_any_value():
    given = {"relearn": {"lora": None, "texts": [0, 10]}, "gcg": {"init": ""}, "lens": None}
    configs = make_configs(list(given), settings=given)
    relearn, gcg = configs["relearn"], configs["gcg"]
    assert (relearn.lora, relearn.texts, gcg.init) == (None, (0, 10), "")
