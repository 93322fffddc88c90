"""The perplexity of neutral text is part of each run's record, and a column of the tables."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from defuse.evaluate import check_up as module
from defuse.evaluate.check_up import CheckUp, check_up
from defuse.experiments.core.check_up import (
    checked_up,
    damage_sentences,
    left_out_sentences,
    perplexities,
)
from defuse.experiments.core.metrics import Answers, make_groups
from defuse.experiments.core.records import records
from defuse.experiments.core.tables import main_table
from defuse.experiments.sweep.table import _row
from defuse.models.load import LoadedModel
from tests.conftest import build_llama
from tests.helpers.answered import HURT, REFERENCE, run

RUNS = [run(seed=1), run(seed=2), run("rna", seed=1)]
ANSWERS = Answers({each: {40: HURT} for each in RUNS}, REFERENCE)
LAYOUT: Any = SimpleNamespace(slices=(), judged=None)


def record(folder: Path, number: int, **check: object) -> None:
    name = RUNS[number].name
    records(folder).put(name, {"run": name, **({"check_up": check} if check else {})})


def test_a_group_has_the_mean_of_its_runs_if_all_have_one(tmp_path: Path) -> None:
    record(tmp_path, 0, perplexity=[20.0, 40.0], left_out=None, damage="The model is damaged: so")
    record(tmp_path, 1, perplexity=[20.0, 10.0], left_out=None, damage=None)
    record(tmp_path, 2)  # of a version before
    found = perplexities(tmp_path, ANSWERS)
    (label, pair), *others = found.items()
    assert pair == pytest.approx((20.0, 20.0))
    assert not others
    table = main_table(make_groups(ANSWERS), LAYOUT, found)
    cells = {row[0]: row[-1] for row in table.rows}
    assert table.head[-1] == "perplexity of neutral text"
    assert cells.pop(label) == "20.0 → 20.0"
    assert set(cells.values()) == {""}
    (said,) = damage_sentences(tmp_path, ANSWERS)
    assert said == f"{label}, 1 of 2 runs: The model is damaged: so."
    assert not list(left_out_sentences(tmp_path, RUNS))


def test_without_any_there_is_no_column_and_one_word(tmp_path: Path) -> None:
    for number in (0, 1):
        record(tmp_path, number, perplexity=[None, None], left_out="needs words", damage=None)
    assert not perplexities(tmp_path, ANSWERS)
    assert "perplexity of neutral text" not in main_table(make_groups(ANSWERS), LAYOUT, {}).head
    assert list(left_out_sentences(tmp_path, RUNS)) == [
        "The perplexity is left out: it needs words."
    ]


def test_a_sweep_s_row_says_whether_its_vulnerability_can_be_read() -> None:
    for low, readable in ((0.1, False), (-0.1, True)):
        given = {"run": "a", "fields": {}, "recipe": {}, "figures": {"any_sentence": {"low": low}}}
        assert _row(given)["vulnerability.readable"] is readable


def test_a_sweep_has_two_columns() -> None:
    given = {"run": "a", "fields": {}, "recipe": {}, "check_up": {"perplexity": [20.0, 40.0]}}
    row = _row(given)
    assert (row["perplexity.before"], row["perplexity.after"]) == (20.0, 40.0)
    assert "check_up" not in row
    none = _row({**given, "check_up": {"perplexity": [None, None], "left_out": "needs words"}})
    assert "perplexity.after" not in none


def test_the_record_is_made_of_the_runs_model_and_the_reference_s(
    tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = LoadedModel(build_llama(layers=1), tiny_tokenizer, "tiny")
    assert checked_up(reference, check_up(reference, write=False), reference.model)["left_out"]
    monkeypatch.setattr(module, "MOST_PERPLEXITY", 1e9)
    before = check_up(reference, write=False)
    other = build_llama(layers=1, seed=1)
    found = checked_up(reference, before, other)
    after = check_up(LoadedModel(other, tiny_tokenizer, "other"), write=False)
    assert found["perplexity"] == [before.perplexity, after.perplexity]
    assert set(found) == {"perplexity", "left_out", "damage"}
    torch.nn.init.constant_(other.lm_head.weight, torch.nan)
    broken = checked_up(reference, CheckUp(before.perplexity), other)
    assert broken["perplexity"] == [before.perplexity, None]
    assert "damaged" in broken["damage"]
