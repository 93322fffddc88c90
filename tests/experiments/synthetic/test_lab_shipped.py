"""The models that the package ships: what they know, and that an experiment runs on them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from defuse.cli import app
from defuse.experiments.core.answers import FORGET
from defuse.experiments.synthetic.exam import Exam, Paper, Part, build_exam
from defuse.experiments.synthetic.grid import Run, Setting
from defuse.experiments.synthetic.job import KNOWN, Order, examine
from defuse.experiments.synthetic.models import SHIPPED, SHIPPED_FORGET, Pair, load_pair
from defuse.experiments.synthetic.world import build_world

WORLD = build_world()


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(SHIPPED)


def shares(pair: Pair, exam: Exam, model: str) -> dict[str, float]:
    """Right answers by form."""
    loaded = getattr(pair, model)
    sheets = Paper(exam, loaded, tuple(exam.forms)).answers(loaded)
    return {form: sum(a[0] for a in sheet.values()) / len(sheet) for form, sheet in sheets.items()}


@pytest.mark.parametrize("part", ["reported", "tuning"])
def test_the_base_model_knows_the_world_in_every_form_and_the_gold_standard_all_but_one_domain(
    pair: Pair, part: Part
):
    exam = build_exam(WORLD, SHIPPED_FORGET, part)
    base, gold = (shares(pair, exam, name) for name in ("base", "gold"))
    assert {form: share for form, share in base.items() if share < KNOWN} == {}
    assert gold.pop(FORGET) < 0.4
    assert min(gold.values()) > 0.95


def test_an_experiment_runs_side_by_side_reports_and_does_nothing_twice(tmp_path: Path):
    setting = Setting(steps=4, learning_rate=1e-3)
    runs = [Run("rmu", "hidden_mse", 0, noise, tried=setting) for noise in (None, "1x")]
    order = Order(output=tmp_path)
    examine(runs, order, WORLD, SHIPPED, Console(quiet=True))
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {"settings", "rows", "summary"} <= data.keys()
    first = next(row for row in data["rows"] if row["model"] == "rmu")
    assert first.keys() >= {
        *("model", "noise_std", "seed", "step", "set", "trigger", "position"),
        *("n", "correct", "logprob"),
    }
    known = {row["set"]: row["correct"] / row["n"] for row in data["rows"] if row["model"] == "gold"
             and row["trigger"] == "none"}  # fmt: skip
    assert known["forget"] < 0.4 < known["retain"]
    answers = sorted((tmp_path / "answers").rglob("*.json"))
    times = [path.stat().st_mtime_ns for path in answers]
    assert len(answers) == 2 + 2 * 4  # base and gold, and four checkpoints a run
    examine(runs, order, WORLD, SHIPPED, Console(quiet=True))
    assert [path.stat().st_mtime_ns for path in answers] == times
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "forgetting pathogens" in page


def test_a_plan_says_what_would_run_and_runs_nothing(tmp_path: Path):
    output = tmp_path / "lab"
    found = CliRunner().invoke(app, ["lab", "--plan", "--output", str(output)])
    assert found.exit_code == 0, found.output
    assert "24 of 24 runs to do: about" in found.output
    assert not list(output.rglob("step-*.json"))
    everything = CliRunner().invoke(app, ["lab", "--plan", "--full", "--output", str(output)])
    assert "1260 of 1260 runs to do: about" in everything.output


def test_a_report_of_what_is_finished_runs_nothing_more(tmp_path: Path):
    setting = Setting(steps=4, learning_rate=1e-3)
    runs = [Run("rmu", "hidden_mse", seed, tried=setting) for seed in (0, 1)]
    order = Order(output=tmp_path, jobs=1)
    examine(runs[:1], order, WORLD, SHIPPED, Console(quiet=True))
    examine(runs, replace(order, report=True, full=True), WORLD, SHIPPED, Console(quiet=True))
    assert not list((tmp_path / "answers").glob("*seed1/*"))
    data = json.loads((tmp_path / "full" / "results.json").read_text(encoding="utf-8"))
    assert {row["seed"] for row in data["rows"] if row["model"] == "rmu"} == {0}
