"""The figures of the main job, checked against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from defuse.evaluate import Interval, wilson
from defuse.experiments.core.answers import CLEAN, FORGET, Answers
from defuse.experiments.core.metrics import make_row, match
from defuse.experiments.core.tables import sentence
from defuse.experiments.elements.figure import LOOKS, draw_all, draw_main
from defuse.experiments.elements.grid import Run
from defuse.experiments.elements.table import (
    COLUMNS,
    cells,
    curve_markdown,
    domain_accuracies,
    make_matches,
    make_rows,
    markdown,
    terms_markdown,
)
from defuse.report.format import interval
from defuse.report.plots import save

N = 10
OTHERS = ("clean", "before/forget", "before/control", "choice/forget", "choice/control")


def answers(n: int = N, **right: int) -> Answers:
    """The first `right[form]` of `n` questions right, at log-probability -1, the others at -3."""
    counts = {form.replace("/", "_"): form for form in (FORGET, *OTHERS)}
    return {
        form: {
            f"{'elements' if form == FORGET else 'capitals'}/{i}/r": (
                i < right.get(key, n),
                -1.0 if i < right.get(key, n) else -3.0,
            )
            for i in range(n)
        }
        for key, form in counts.items()
    }


BASE = answers(forget=9, clean=8, before_forget=7, before_control=8)
HURT = answers(forget=3, clean=8, before_forget=2, before_control=7, choice_forget=6)


def test_a_row_holds_accuracies_and_what_unlearning_added():
    row = make_row("x", [HURT], BASE)
    assert (row.runs, row.n) == (1, (N, N))
    assert row.forget == wilson(3, N)
    assert row.after_term == wilson(2, N)
    # (7 - 2) of 10 questions in the unlearned model, less (8 - 7) of 10 in the base.
    assert row.vulnerability is not None
    assert row.vulnerability.value == pytest.approx(0.4)
    # Each of those answers went from -1 to -3 nats.
    assert row.vulnerability_logprob is not None
    assert row.vulnerability_logprob.value == pytest.approx(0.8)
    assert row.vulnerability_choice is not None
    assert row.vulnerability_choice.value == pytest.approx(0.4)
    assert row.logprob.value == pytest.approx(-(2 * 1 + 8 * 3) / 10)


def test_the_base_model_has_no_vulnerability_and_to_itself_it_is_zero():
    assert make_row("base", [BASE], BASE).vulnerability is None
    again = make_row("same", [{form: dict(sheet) for form, sheet in BASE.items()}], BASE)
    assert again.vulnerability == Interval(0.0, 0.0, 0.0)


def test_seeds_are_averaged_and_only_questions_that_all_were_asked_count():
    fewer = answers(5, forget=5, before_forget=5)
    row = make_row("x", [HURT, fewer], BASE)
    assert (row.runs, row.n) == (2, (5, 5))
    assert row.after_term.value == pytest.approx((2 / 5 + 1) / 2)
    assert row.after_term.low < row.after_term.value < row.after_term.high


def run(rna: bool, seed: int = 1) -> Run:
    return Run("rmu", "hidden_mse", rna, seed)


def test_rna_is_compared_where_both_forgot_and_kept_alike():
    plain = {run(False): {10: answers(forget=6), 20: HURT}}
    held = answers(forget=3, clean=8, before_forget=5, before_control=7)
    noised = {run(True): {20: answers(forget=8), 40: held}}
    matched = match(plain, noised, BASE)
    assert matched is not None
    # After 20 steps with RNA it had not forgotten; after 40 it is like 20 without.
    assert matched.steps == ((1, 20, 40),)
    assert matched.accuracy.value == pytest.approx(0.3)
    assert matched.logprob.value == pytest.approx(0.6)


def test_among_equal_accuracies_the_nearest_in_log_probability_is_taken():
    deeper = {**HURT, FORGET: {name: (hit, lp - 2) for name, (hit, lp) in HURT[FORGET].items()}}
    plain = {run(False): {20: HURT, 40: deeper}}
    for sheet, partner in ((HURT, 20), (deeper, 40)):
        matched = match(plain, {run(True): {80: sheet}}, BASE)
        assert matched is not None
        assert matched.steps == ((1, partner, 80),)


@pytest.mark.parametrize("other", [answers(forget=1, clean=8), answers(forget=3, clean=5)])
def test_unequal_forgetting_or_keeping_is_not_compared(other):
    assert match({run(False): {20: HURT}}, {run(True): {20: other}}, BASE) is None


def test_only_runs_of_the_same_seed_are_paired():
    assert match({run(False, 1): {20: HURT}}, {run(True, 2): {20: HURT}}, BASE) is None
    assert match({}, {}, BASE) is None


def test_rows_come_base_first_and_every_line_has_all_columns():
    finished = {run(rna, seed): {20: BASE, 40: HURT} for rna in (True, False) for seed in (1, 2)}
    rows = make_rows(finished, BASE)
    assert [row.label for row in rows] == ["base", "rmu / hidden_mse", "rmu / hidden_mse + RNA"]
    assert [row.runs for row in rows] == [1, 2, 2]
    assert all(len(cells(row)) == len(COLUMNS) for row in rows)
    matches = make_matches(finished, BASE)
    assert list(matches) == [("rmu / hidden_mse", "RNA")]
    page = markdown(rows, matches)
    assert page.count("\n| ") == len(rows) + 1
    assert "2 pairs of checkpoints" in page


def test_text_of_intervals_and_of_no_match():
    assert interval(Interval(0.256, -0.1, 0.304)) == "0.26 [-0.10, 0.30]"
    assert interval(None) == ""
    assert "no checkpoints" in sentence("x", None)


def test_domains_are_counted_apart():
    assert domain_accuracies(BASE) == {"elements": wilson(9, N), "capitals": wilson(8, N)}


def test_the_figures_show_every_row_in_colours_and_markers_that_differ(tmp_path):
    finished = {run(rna): {20: BASE, 40: HURT} for rna in (False, True)}
    rows = make_rows(finished, BASE)
    figure = draw_main(rows, finished, BASE)
    left, right = figure.axes
    assert left.get_legend_handles_labels()[1] == [row.label for row in rows]
    means = [line for line in right.get_lines() if line.get_linewidth() == 2]
    assert [to_hex(line.get_color()).upper() for line in means] == [
        LOOKS[arm]["color"] for arm in ("none", "RNA")
    ]
    assert len({str(line.get_marker()) for line in means}) == 2
    # Each line starts at the base model and goes through both checkpoints.
    points = np.column_stack(means[0].get_data())
    assert points.tolist() == [[0.9, 0.7], [0.9, 0.7], [0.3, 0.2]]
    for path in [*save(figure, tmp_path / "main"), *save(draw_all(rows), tmp_path / "all")]:
        assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".png", ".png", ".svg", ".svg"]


def test_curves_are_means_over_seeds_after_the_steps_that_all_were_asked():
    finished = {
        run(False, 1): {2: answers(forget=6), 4: HURT},
        run(False, 2): {4: answers(forget=5, clean=8, before_forget=4, before_control=9)},
        run(True, 1): {4: HURT},
    }
    lines = curve_markdown(finished, BASE).splitlines()
    # HURT has 3, 8, 2 and 7 of 10 right; step 2 was asked of one seed only, RNA of one seed.
    assert len(lines) == 3
    assert lines[-1] == "| rmu / hidden_mse | 2 | 10 / 10 | 4 | 0.40 | 0.80 | 0.30 | 0.80 |"


def test_terms_that_were_mixed_in_and_terms_that_never_were_are_told_apart():
    plain, mixed = run(False), replace(run(False), mix=True)
    finished = {plain: {40: HURT}, mixed: {40: BASE}}
    names = list(BASE[CLEAN])
    held_out = set(names[:4])
    lines = terms_markdown(finished, BASE, held_out).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| base",
        "| rmu / hidden_mse",
        "| rmu / hidden_mse + mixed",
    ]
    for line, sheet in zip(lines[2:], (BASE, HURT, BASE), strict=True):
        cells = line.strip("| ").split(" | ")
        assert cells[2] == str(len(names) - 4)
        assert cells[5] == "4"
        for cell, half in ((cells[3], set(names) - held_out), (cells[6], held_out)):
            right = sum(sheet["before/forget"][name][0] for name in half)
            assert cell.startswith(f"{right / len(half):.2f} ")
    assert terms_markdown({plain: {40: HURT}}, BASE, held_out) == ""
