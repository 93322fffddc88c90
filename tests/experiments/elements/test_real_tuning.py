"""Settings are chosen by one rule that never looks at what a forget-term does."""

from dataclasses import replace

import pytest

from defuse.experiments.core.selection import trials
from defuse.experiments.elements.grid import Run, tuning_grid
from defuse.experiments.elements.tuning import best_defence, sentences
from tests.experiments.elements.test_real_table import BASE, answers

SLOW = Run("npo", "logit_kl", False, 0, ("steps=40", "learning_rate=0.001"))
FAST = replace(SLOW, changes=("steps=40", "learning_rate=0.003"))


def test_cost_is_what_is_still_known_and_what_was_lost():
    sheet = answers(forget=5, clean=6, before_forget=1)
    (trial,) = trials({SLOW: {40: sheet}}, BASE)
    # 5 of 10 is 0.25 above chance, and 6 of 10 others are 0.2 below the base's 8 of 10.
    assert trial.cost == pytest.approx(0.45)
    assert trial.after_term == pytest.approx(0.1)


def test_forgetting_below_chance_and_learning_elsewhere_earn_nothing():
    (trial,) = trials({SLOW: {40: answers(forget=0, clean=10)}}, BASE)
    assert trial.cost == 0


def test_the_cheapest_comes_first_whatever_a_forget_term_does_and_of_equals_the_shorter():
    forgot, fragile = answers(forget=3, clean=8), answers(forget=3, clean=8, before_forget=0)
    kept = answers(forget=8, clean=8)
    ranked = trials({SLOW: {20: kept, 40: forgot}, FAST: {20: fragile, 40: forgot}}, BASE)
    assert [(t.run, t.step) for t in ranked[:2]] == [(FAST, 20), (SLOW, 40)]
    assert ranked[-1].step == 20
    assert ranked[-1].run == SLOW


def test_the_noise_kept_holds_best_among_those_that_cost_little():
    plain = trials({SLOW: {40: answers(forget=3, clean=8)}}, BASE)[0]
    sheets = {
        "0.3x": answers(forget=3, clean=8, before_forget=3),
        "1x": answers(forget=3, clean=8, before_forget=5),
        "10x": answers(forget=8, clean=8, before_forget=8),
    }
    noised = {
        replace(SLOW, rna=True, changes=(*SLOW.changes, f"noise.std={std}")): {40: sheet}
        for std, sheet in sheets.items()
    }
    kept = best_defence(trials(noised, BASE), plain)
    assert kept is not None
    assert kept.run.changes[-1] == "noise.std=1x"
    dear = {run: steps for run, steps in noised.items() if run.changes[-1] == "noise.std=10x"}
    assert best_defence(trials(dear, BASE), plain) is None
    said = "\n".join(sentences({SLOW: {40: answers(forget=3, clean=8)}, **noised}, BASE))
    assert "noise to keep: learning_rate=0.001 noise.std=1x, step 40" in said


def test_every_pair_is_tried_at_every_rate_and_answers_outlive_changed_recipes():
    grid = tuning_grid()
    assert len({(run.method, run.retain) for run in grid}) == 18
    for run in grid:
        fields = [change.partition("=")[0] for change in run.changes]
        assert fields[:2] == ["steps", "learning_rate"]
        assert run.rna == (fields[2:] == ["noise.std"])
        assert set(fields[2:]) <= {"noise.std", "topics.0.weight"}
