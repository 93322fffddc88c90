"""Findings of an attack: kept on disk, resumed, and counted once."""

from pathlib import Path

import pytest
import torch

from defuse.attacks import Cost, Findings, open_findings
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.helpers.planted import names_in


def test_a_finding_is_computed_once_and_its_cost_counted_once(tmp_path: Path) -> None:
    model, computed = build_llama(layers=2), []
    ids = torch.ones(3, 5, dtype=torch.long)

    def compute() -> tuple[int, ...]:
        computed.append(1)
        model(ids).logits.sum().backward()
        return (1, 2)

    for _ in range(2):
        findings = open_findings(tmp_path / "log.jsonl", {"of": "this"})
        with findings.counting(model):
            for _ in range(2):
                assert findings.get_or_compute("piece", compute) == [1, 2]
        cost = findings.cost
        assert (cost.forward, cost.backward, cost.tokens) == (3, 3, 15)
        assert cost.seconds > 0
    assert computed == [1]
    assert not model.model.layers[0]._forward_hooks


def test_findings_of_another_identity_are_refused_and_a_torn_line_is_dropped(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.jsonl"
    findings = open_findings(path, {"settings": 1})
    assert [findings.get_or_compute(name, lambda: name) for name in "ab"] == ["a", "b"]  # noqa: B023
    with pytest.raises(UsageError, match=r"log\.jsonl holds unfinished work for other settings"):
        open_findings(path, {"settings": 2})
    path.write_bytes(path.read_bytes()[:-5])
    again = open_findings(path, {"settings": 1})
    assert [again.get_or_compute(name, lambda: "new") for name in "abc"] == ["a", "new", "new"]
    assert names_in(path) == ["a", "b", "c"]


def test_a_model_that_computes_nan_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model: computes NaN or infinity \(answers\)"):
        Findings().get_or_compute("answers", lambda: [float("nan")])


def test_every_finding_is_reported_also_one_that_is_known(tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []

    class Heard:
        def start(self, name: str, total: int) -> None:
            heard.append((name, total))

        def advance(self, count: int = 1, note: str = "") -> None:
            heard.append((note, count))

    for _ in range(2):
        findings = open_findings(tmp_path / "log.jsonl", {})
        findings.report_to(Heard(), "an attack", 3)
        findings.get_or_compute("first", lambda: 1)
        findings.skip(2)
    assert heard == [("an attack", 3), ("first", 1), ("", 2)] * 2


def test_costs_add_up() -> None:
    assert Cost(1.0, 2, 3, 4) + Cost(1.0, 1, 1, 1) - Cost(0.5) == Cost(1.5, 3, 4, 5)
