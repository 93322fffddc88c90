"""From answers to figures, the Pareto front and the table."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from defuse.evaluate import Interval, wilson
from defuse.experiments.core.answers import FORGET, RETAIN
from defuse.experiments.core.metrics import Answers, Group
from defuse.experiments.core.records import records
from defuse.experiments.core.scenario import Layout
from defuse.experiments.sweep.figure import draw, pareto_front
from defuse.experiments.sweep.table import Format, figures, write_table
from tests.helpers.answered import HURT, REFERENCE

LAYOUT = Layout((), None)


def group(forget: float, kept: float) -> Group:
    shares = {FORGET: Interval(forget, forget, forget), RETAIN: Interval(kept, kept, kept)}
    return Group("", "none", 1, dict.fromkeys(shares, 9), shares, {}, {}, {})


def test_the_figures_of_a_run_by_hand() -> None:
    hurt, reference = (
        {cell: table for cell, table in each.items() if cell.position in (None, "before")}
        for each in (HURT, REFERENCE)
    )
    found = figures(hurt, reference)
    assert found["forget_accuracy"] == {"n": 10, **asdict(wilson(3, 10))}
    assert found["retain_accuracy"] == {"n": 10, **asdict(wilson(8, 10))}
    assert found["after_control_accuracy"] == {"n": 10, **asdict(wilson(7, 10))}
    assert found["after_forget_accuracy"] == {"n": 10, **asdict(wilson(2, 10))}
    # (7 - 2) of 10 in the unlearned model, less (8 - 7) of 10 in the reference.
    assert found["vulnerability"]["value"] == pytest.approx(0.4)
    # Of answers at -1 and -3 nats: twice that.
    assert found["vulnerability_nats"]["value"] == pytest.approx(0.8)
    assert "vulnerability" not in figures(reference, reference)


def test_questions_that_were_not_perturbed_give_accuracies_only() -> None:
    plain = {cell: table for cell, table in REFERENCE.items() if cell.position is None}
    assert set(figures(dict(plain), plain)) == {"forget_accuracy", "retain_accuracy"}


def test_the_front_by_hand() -> None:
    """Of (forget, kept): (0.3, 0.9) beats (0.4, 0.9) and (0.3, 0.5); (0.25, 0.6) forgot more."""
    best, more = group(0.3, 0.9), group(0.25, 0.6)
    assert pareto_front([group(0.4, 0.9), best, group(0.3, 0.5), more], RETAIN) == [more, best]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_the_front_is_what_nothing_dominates(places: list[tuple[int, int]]) -> None:
    groups = [group(forget, kept) for forget, kept in places]
    front = pareto_front(groups, RETAIN)
    found = [(each.accuracy[FORGET].value, each.accuracy[RETAIN].value) for each in front]
    for forget, kept in places:
        better = [p for p in places if p[0] <= forget and p[1] >= kept and p != (forget, kept)]
        assert ((forget, kept) in found) == (not better)
    assert found == sorted(found)


def test_the_plot_shows_the_reference_the_front_and_the_rest() -> None:
    groups = [group(0.9, 0.95), group(0.3, 0.9), group(0.4, 0.8)]
    (axes,) = draw(groups, Answers({}, REFERENCE), LAYOUT).axes
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


def write(folder: Path, found: Sequence[dict[str, Any]], form: Format = "jsonl") -> Path:
    for each in found:
        records(folder).put(each["run"], each)
    return write_table(form, folder)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_table_has_a_line_for_each_run_in_the_order_they_ended(tmp_path: Path) -> None:
    found = read(write(tmp_path, RECORDS))
    assert [row["run"] for row in found] == ["a", "b", "c"]
    assert [row.get("noise.std") for row in found] == [0.0, "0.3x", None]
    assert [row["error"] for row in found] == [None, None, "learning_rate: …"]
    assert found[0]["vulnerability.low"] == 0.25
    assert "answers" not in found[0]


def test_a_parquet_table_holds_the_same_and_takes_the_other_s_place(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    path = write(tmp_path, RECORDS, "parquet")
    assert {each.name for each in tmp_path.iterdir()} == {"runs", "runs.parquet"}
    columns = parquet.read_table(path).to_pydict()
    assert columns["seed"] == [0, 1, None]
    assert columns["noise.std"] == ["0.0", '"0.3x"', None]  # a number and a text: both as JSON
    assert columns["vulnerability.high"] == [0.75, 0.75, None]
    assert json.loads(columns["recipe"][0]) == {"seed": 0}


def test_a_run_tried_again_has_one_line(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    found = read(write(tmp_path, [record("c", "4", layer=7)]))
    assert [row["run"] for row in found] == ["a", "b", "c"]
    assert found[2]["error"] is None
