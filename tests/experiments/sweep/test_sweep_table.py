"""From answers to figures, the Pareto front and the table."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from defuse.evaluate import Interval, wilson
from defuse.experiments.core.answers import FORGET, RETAIN, Cell
from defuse.experiments.core.metrics import Group, make_group
from defuse.experiments.sweep.figure import draw
from defuse.experiments.sweep.summary import figures, make_groups, markdown, pareto_front, value
from defuse.experiments.sweep.table import Table
from tests.helpers.answered import HURT, REFERENCE, answers

KEPT = "retain_accuracy"


def group(forget: float, kept: float) -> Group:
    shares = {FORGET: Interval(forget, forget, forget), RETAIN: Interval(kept, kept, kept)}
    return Group("", "none", 1, dict.fromkeys(shares, 9), shares, {}, {}, {})


def test_the_figures_of_a_run_by_hand() -> None:
    found = figures(make_group("x", "none", [HURT], REFERENCE))
    assert found["forget_accuracy"] == (10, wilson(3, 10))
    assert found["retain_accuracy"] == (10, wilson(8, 10))
    assert found["after_control_accuracy"] == (10, wilson(7, 10))
    assert found["after_forget_accuracy"] == (10, wilson(2, 10))
    # (7 - 2) of 10 in the unlearned model, less (8 - 7) of 10 in the reference.
    assert "vulnerability" in found
    assert "vulnerability" not in figures(make_group("x", "", [REFERENCE], REFERENCE))


def test_questions_that_were_not_perturbed_give_accuracies_only() -> None:
    plain = {cell: table for cell, table in REFERENCE.items() if cell.position is None}
    assert set(figures(make_group("x", "none", [dict(plain)], plain))) == {"forget_accuracy", KEPT}


def test_runs_of_one_setting_are_averaged() -> None:
    other = answers(forget=0)
    reference, both, single = make_groups([("a", REFERENCE), ("b", other), ("a", other)], REFERENCE)
    assert (reference.label, both.label, both.runs, single.runs) == ("reference", "a", 2, 1)
    assert value(both, "forget_accuracy") == pytest.approx(0.45)
    assert figures(both)["forget_accuracy"][1].low < 0.45
    assert "| a | 2 | 0.45 [" in markdown([reference, both, single])
    assert set(REFERENCE) >= {Cell("forget"), Cell("places")}


def test_the_front_by_hand() -> None:
    """Of (forget, kept): (0.3, 0.9) beats (0.4, 0.9) and (0.3, 0.5); (0.25, 0.6) forgot more."""
    best, more = group(0.3, 0.9), group(0.25, 0.6)
    assert pareto_front([group(0.4, 0.9), best, group(0.3, 0.5), more], KEPT) == [more, best]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_the_front_is_what_nothing_dominates(places: list[tuple[int, int]]) -> None:
    groups = [group(forget, kept) for forget, kept in places]
    front = pareto_front(groups, KEPT)
    found = [(value(each, "forget_accuracy"), value(each, KEPT)) for each in front]
    for forget, kept in places:
        better = [p for p in places if p[0] <= forget and p[1] >= kept and p != (forget, kept)]
        assert ((forget, kept) in found) == (not better)
    assert found == sorted(found)


def test_the_plot_shows_the_reference_the_front_and_the_rest() -> None:
    reference, front, other = group(0.9, 0.95), group(0.3, 0.9), group(0.4, 0.8)
    (axes,) = draw(reference, [front, other]).axes
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["reference", "dominated", "Pareto front"]


def record(name: str, finished: str, **fields: Any) -> dict[str, Any]:
    interval = {"n": 9, "value": 0.5, "low": 0.25, "high": 0.75}
    return {
        "run": name,
        "fields": fields,
        "figures": {"vulnerability": interval},
        "answers": {},
        "finished": finished,
        "recipe": {"seed": 0},
    }


RECORDS = [
    record("b", "2", seed=1, **{"noise.std": "0.3x"}),
    record("a", "1", seed=0, **{"noise.std": 0.0}),
    {**record("c", "3", layer=7), "figures": {}, "error": "learning_rate: …"},
]


def test_the_table_has_a_line_for_each_run_in_the_order_they_ended(tmp_path: Path) -> None:
    table = Table(tmp_path, "jsonl", RECORDS[:1])
    table.add(RECORDS[2])
    table.add(RECORDS[1])
    rows = [json.loads(line) for line in table.path.read_text("utf-8").splitlines()]
    assert [row["run"] for row in rows] == ["a", "b", "c"]
    assert [row.get("noise.std") for row in rows] == [0.0, "0.3x", None]
    assert [row["error"] for row in rows] == [None, None, "learning_rate: …"]
    assert rows[0]["vulnerability.low"] == 0.25
    assert "answers" not in rows[0]


def test_a_parquet_table_holds_the_same_and_takes_the_other_s_place(tmp_path: Path) -> None:
    Table(tmp_path, "jsonl", RECORDS).write()
    table = Table(tmp_path, "parquet", RECORDS)
    table.write()
    assert [path.name for path in tmp_path.iterdir()] == ["runs.parquet"]
    columns = parquet.read_table(table.path).to_pydict()
    assert columns["seed"] == [0, 1, None]
    assert columns["noise.std"] == ["0.0", '"0.3x"', None]  # a number and a text: both as JSON
    assert columns["vulnerability.high"] == [0.75, 0.75, None]
    assert json.loads(columns["recipe"][0]) == {"seed": 0}


def test_a_run_tried_again_has_one_line(tmp_path: Path) -> None:
    table = Table(tmp_path, "jsonl", RECORDS)
    table.add(record("c", "4", layer=7))
    rows = [json.loads(line) for line in table.path.read_text("utf-8").splitlines()]
    assert [row["run"] for row in rows] == ["a", "b", "c"]
    assert rows[2]["error"] is None
