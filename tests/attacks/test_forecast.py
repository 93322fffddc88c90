"""The time of attacks is counted in tokens beforehand, and a slow GCG is no default."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from defuse.attacks import forecast as module
from defuse.attacks.findings import Findings
from defuse.attacks.forecast import WORK, forward_tokens, without_slow
from defuse.attacks.gcg import GCG
from defuse.attacks.lens import Lens
from defuse.attacks.orthogonalise import Orthogonalisation
from defuse.attacks.prune import Pruning
from defuse.attacks.quantise import Quantisation
from defuse.attacks.registry import ATTACKS, Target
from defuse.attacks.relearn import Relearning
from defuse.attacks.rephrase import Rephrasing
from defuse.attacks.run import Plan, Request
from defuse.attacks.triggers import TriggerSearch
from defuse.cli import app
from defuse.utils.progress import SILENT
from tests.attacks.test_command import command
from tests.helpers.attacked import DATA, lab_data, lab_pair

QUICK: dict[str, Any] = {
    "quantise": Quantisation(bits=(8,)),
    "lens": Lens(folds=0),
    "orthogonalise": Orthogonalisation(ways=("all", "strongest"), texts=16),
    "prune": Pruning(shares=(0.01,), texts=16),
    "rephrase": Rephrasing(ways=("orders",)),
    "triggers": TriggerSearch(top=10, mined=10, shown=2),
    "relearn": Relearning(texts=(10,), source=("forget",), steps=8, checkpoints=1, lora=None),
    "gcg": GCG(
        aims=("break",), modes=("universal",), steps=3, search_width=32, init="", margin=None
    ),
}


def test_every_attack_is_forecast() -> None:
    assert set(WORK) == set(ATTACKS) == set(QUICK)


@pytest.mark.parametrize("attack", QUICK)
def test_the_tokens_are_about_those_that_the_attack_takes(attack: str) -> None:
    reference = lab_pair().reference
    target = Target(reference.model, reference.tokenizer, lab_data(8, 8), reference.model)
    found = ATTACKS[attack].run_on(target, QUICK[attack], Findings(), SILENT)
    forward = found.cost.tokens
    share = forward_tokens(attack, target, QUICK[attack]) / forward
    assert 0.4 < share < 4, (share, forward)


def test_a_slow_gcg_is_left_out_with_a_word_unless_it_has_begun(tmp_path: Path) -> None:
    configs = {"quantise": QUICK["quantise"], "gcg": GCG()}
    plan = Plan(Request("model", tmp_path, configs, DATA))
    assert without_slow(plan, {"gcg": 1800.0}) == plan
    left = without_slow(plan, {"gcg": 7200.0})
    assert list(left.request.configs) == ["quantise"]
    assert left.left_out == {"gcg": "about 2.0 h on this machine; --kind gcg runs it"}
    alone = replace(plan, request=replace(plan.request, configs={"gcg": GCG()}))
    assert without_slow(alone, {"gcg": 7200.0}) == alone
    (tmp_path / "gcg.json").write_text("{}")
    assert without_slow(plan, {"gcg": 7200.0}) == plan


def test_the_plan_says_a_time_and_only_defaults_are_left_out(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "matrix_speed", lambda *_: 1.0)  # operations a second
    named = command(tiny_model_folder, tmp_path, "--plan")
    said = CliRunner().invoke(app, named, catch_exceptions=False).output
    assert "quantise: Quantisation(bits=(8, 4)" in said
    assert "at most on this machine" in said
    monkeypatch.setattr("defuse.attacks.run._checked", lambda request, *_: request)
    monkeypatch.setattr(module, "forward_tokens", lambda *_: 1.0)
    default = [each for each in named if each not in ("--kind", "quantise")]
    said = " ".join(CliRunner().invoke(app, default, catch_exceptions=False).output.split())
    assert "left out: gcg (about" in said
    assert "gcg: GCG(" not in said
    chosen = [*named, "--kind", "gcg"]
    assert "gcg: GCG(" in CliRunner().invoke(app, chosen, catch_exceptions=False).output
