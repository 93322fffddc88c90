"""Settings are chosen by one rule that never looks at the harm of a forget-token."""

import pytest

from defuse.experiments.core.answers import FORGET, RETAIN
from defuse.experiments.core.metrics import Answers
from defuse.experiments.core.selection import advice, best_defence, settings_table, trials
from tests.helpers.answered import REFERENCE, answers, run

SLOW, FAST = run(said=" slow", settings=("rate=1",)), run(said=" fast", settings=("rate=3",))


def test_cost_is_what_is_still_known_and_what_is_lost():
    known = {SLOW: {40: answers(forget=5, retain=6, before_forget=1)}}
    (trial,) = trials(Answers(known, REFERENCE), "before")
    # 5 of 10 is 0.25 above chance, and 6 of 10 are 0.2 below the reference's 8 of 10.
    assert trial.cost == pytest.approx(0.45)
    assert trial.after_forget_token == pytest.approx(0.1)
    assert "rate=1, step 40: forget 0.50, retain 0.60, after a forget-token 0.10" in str(trial)


def test_forgetting_below_chance_and_learning_elsewhere_earn_nothing():
    (trial,) = trials(Answers({SLOW: {40: answers(forget=0, retain=10)}}, REFERENCE), "before")
    assert trial.cost == 0


def test_the_cheapest_comes_first_whatever_a_forget_token_does_and_of_equals_the_shorter():
    forgot, fragile = answers(forget=3, retain=8), answers(forget=3, retain=8, before_forget=0)
    kept = answers(forget=8, retain=8)
    known = {SLOW: {20: kept, 40: forgot}, FAST: {20: fragile, 40: forgot}}
    ranked = trials(Answers(known, REFERENCE), "before")
    assert [(t.run, t.step) for t in ranked[:2]] == [(FAST, 20), (SLOW, 40)]
    assert (ranked[-1].run, ranked[-1].step) == (SLOW, 20)


def test_the_defence_kept_holds_best_among_those_that_cost_little():
    plain = {run(): {40: answers(forget=3, retain=8)}}
    tables = {
        "0.3x": answers(forget=3, retain=8, before_forget=3),
        "1x": answers(forget=3, retain=8, before_forget=5),
        "10x": answers(forget=8, retain=8, before_forget=8),
    }
    noised = {
        run("rna", defence_settings=(("std", std),)): {40: table} for std, table in tables.items()
    }
    kept = best_defence(
        trials(Answers(noised, REFERENCE), "before"), trials(Answers(plain, REFERENCE), "before")[0]
    )
    assert kept is not None
    assert kept.run.defence_settings == (("std", "1x"),)
    dear = {r: steps for r, steps in noised.items() if r.defence_settings == (("std", "10x"),)}
    plain_trial = trials(Answers(plain, REFERENCE), "before")[0]
    assert best_defence(trials(Answers(dear, REFERENCE), "before"), plain_trial) is None
    said = "\n".join(advice(Answers({**plain, **noised}, REFERENCE), "before"))
    assert said.startswith("rmu / hidden_mse\n")
    assert "  rna to keep: std=1x, step 40" in said
    assert "rna to keep: none, all cost too much" in "\n".join(
        advice(Answers({**plain, **dear}, REFERENCE), "before")
    )


def test_the_table_of_settings_has_each_at_its_cheapest_checkpoint():
    alike, kept = answers(forget=3, retain=8), answers(forget=8, retain=8)
    finished = {SLOW: {20: kept, 40: alike, 60: alike}, FAST: {20: kept}, run("rna"): {20: alike}}
    table = settings_table(Answers(finished, REFERENCE), [FORGET, RETAIN])
    assert table.head == ["setting", "step", "forget set (n = 10)", "retain set (n = 10)"]
    assert table.rows == [
        ["rmu hidden_mse rate=1", "40", "0.30", "0.80"],
        ["rmu hidden_mse rate=3", "20", "0.80", "0.80"],
    ]
