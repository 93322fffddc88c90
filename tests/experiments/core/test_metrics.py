"""Figures of an experiment, checked against numbers worked out by hand."""

from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_TOKEN,
    RETAIN,
    Answer,
    AnswerTable,
    Cell,
    Slice,
    from_json,
    from_old_json,
    pooled,
    to_json,
)
from defuse.experiments.core.defences import make_defences, match
from defuse.experiments.core.metrics import (
    Answers,
    divergences,
    make_group,
    make_groups,
)
from defuse.experiments.core.scenario import Layout, late
from defuse.experiments.core.tables import (
    curve_table,
    defence_sentences,
    heap_sentences,
    held_out_table,
    main_table,
    short_table,
    tables,
    unreadable_sentences,
)
from defuse.report.format import as_csv, as_latex, screen_table
from defuse.statistics import Interval, wilson
from tests.helpers.answered import HURT, REFERENCE, answers, run

N = 10
BEFORE = Slice("retain", FORGET_TOKEN, "before")
LAYOUT = Layout((FORGET, RETAIN, Slice("retain", CONTROL_TOKEN, "before"), BEFORE), "before")


def test_a_group_holds_accuracies_and_what_unlearning_added():
    group = make_group("x", HURT, REFERENCE)
    assert (group.runs, group.n[FORGET], group.n[RETAIN]) == (1, N, N)
    assert group.accuracy[FORGET] == wilson(3, N)
    assert group.accuracy[BEFORE] == wilson(2, N)
    # (7 - 2) of 10 questions in the unlearned model, less (8 - 7) of 10 in the reference.
    accuracy, nats = group.vulnerability["before"]
    assert accuracy.value == pytest.approx(0.4)
    assert nats.value == pytest.approx(0.8)  # each of those answers went from -1 to -3 nats
    assert group.vulnerability["choice"][0].value == pytest.approx(0.4)
    assert group.logprob[BEFORE].value == pytest.approx(-(2 * 1 + 8 * 3) / 10)


def test_a_model_that_fails_after_any_sentence_has_no_vulnerability_to_read():
    """After a control token all answers are wrong; after a forget-token not even all."""
    broken = make_group("x", answers(before_control=0, before_forget=2), REFERENCE)
    assert broken.vulnerability["before"][0].value < 0
    # (10 - 0) of 10 questions in the unlearned model, less (8 - 8) of 10 in the reference.
    assert broken.any_sentence["before"][0].value == pytest.approx(1.0)
    assert not broken.is_readable("before")
    (said,) = unreadable_sentences([broken])
    assert said.startswith("x: its vulnerability (before) cannot be read")
    hurt = make_group("x", HURT, REFERENCE)
    assert hurt.is_readable("before")
    assert not list(unreadable_sentences([hurt]))


def test_the_table_on_a_terminal_of_80_columns_cuts_no_word():
    group = make_group("simnpo + logit_kl, rna 0.3x + mixing 0.5", HURT, REFERENCE)
    console = Console(width=80, file=StringIO())
    console.print(screen_table(short_table([group], LAYOUT)))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("forget-", "token", "control", "vulner-", "ability", "logit_kl,", "mixing"):
        assert word in said


def test_the_reference_has_no_vulnerability_and_an_equal_model_has_none():
    assert not make_group("reference", REFERENCE, REFERENCE).vulnerability
    again = {cell: dict(sheet) for cell, sheet in REFERENCE.items()}
    assert make_group("x", again, REFERENCE).vulnerability["before"][0] == Interval(0, 0, 0)


def test_seeds_are_averaged_and_only_questions_that_all_answered_count():
    fewer = answers(5, forget=5, before_forget=5)
    finished = {run(seed=1): {40: HURT}, run(seed=2): {40: fewer}}
    _, group = make_groups(Answers(finished, REFERENCE))
    assert (group.runs, group.n[FORGET]) == (2, 5)
    found = group.accuracy[BEFORE]
    assert found.value == pytest.approx((2 / 5 + 1) / 2)
    assert found.low < found.value < found.high


def test_retain_sets_are_pooled_and_may_share_question_ids():
    table = {Cell("places"): {"1": Answer(True, -1)}, Cell("sports"): {"1": Answer(False, -3)}}
    assert list(pooled(table, RETAIN)) == [("places", "1"), ("sports", "1")]
    assert pooled(table, FORGET) == {}


def test_defences_are_compared_at_matched_forgetting():
    held = answers(forget=3, retain=8, before_forget=5, before_control=7)
    plain = {run(): {10: answers(forget=6), 20: HURT}}
    defended = {run("rna"): {20: answers(forget=8), 40: held}}
    matched = match(plain, defended, REFERENCE, "before")
    assert matched is not None
    # After 20 steps with RNA it had not forgotten; after 40 it is like 20 without.
    assert matched.steps == ((1, 20, 40),)
    assert float(matched.accuracy.mean()) == pytest.approx(0.3)
    assert float(matched.logprob.mean()) == pytest.approx(0.6)
    (defence,) = make_defences(Answers({**plain, **defended}, REFERENCE))
    assert (defence.label, defence.against) == (run("rna").group, run().group)
    assert defence.recovered["before"].value == pytest.approx(0.3)
    found = defence.matched["before"]
    assert found is not None
    assert (found.steps, found.n) == (matched.steps, matched.n)
    assert found.accuracy.value == pytest.approx(0.3)


def test_of_equal_accuracies_the_nearest_in_log_probability_is_matched():
    deeper = dict(HURT)
    deeper[Cell("forget")] = {
        name: replace(each, logprob=each.logprob - 2) for name, each in HURT[Cell("forget")].items()
    }
    plain = {run(): {20: HURT, 40: deeper}}
    for table, partner in ((HURT, 20), (deeper, 40)):
        matched = match(plain, {run("rna"): {80: table}}, REFERENCE, "before")
        assert matched is not None
        assert matched.steps == ((1, partner, 80),)


@pytest.mark.parametrize("other", [answers(forget=1, retain=8), answers(forget=3, retain=5)])
def test_unequal_forgetting_or_keeping_is_not_matched(other: AnswerTable):
    assert match({run(): {20: HURT}}, {run("rna"): {20: other}}, REFERENCE, "before") is None


def test_only_runs_of_one_seed_are_matched():
    assert match({run(seed=1): {20: HURT}}, {run(seed=2): {20: HURT}}, REFERENCE, "before") is None
    assert match({}, {}, REFERENCE, "before") is None


def test_chance_depends_on_the_number_of_choices():
    """0.7 of two-choice questions is near chance, of four-choice ones it is not forgotten."""
    for choices, found in ((4, False), (2, True)):
        known = answers(choices=choices)
        table = answers(choices=choices, forget=7)
        pair = match({run(): {20: table}}, {run("rna"): {20: table}}, known, "before")
        assert (pair is not None) == found


def test_the_distance_to_the_retrained_model_is_the_mean_divergence_of_the_choices():
    skewed = (-0.6931471805599453, -1.3862943611198906, -2.0, -2.1)
    even = (-1.3862943611198906,) * 4
    target = {Cell("forget"): {"q": Answer(True, -0.1, skewed)}}
    flat = {Cell("forget"): {"q": Answer(True, -1.4, even)}}
    p = torch.tensor(skewed, dtype=torch.float64).exp()
    expected = p * (p.log() - 0.25 * torch.ones(4, dtype=torch.float64).log() + 1.3862943611198906)
    found = divergences(target, FORGET, [flat, target])
    assert found[0].item() == pytest.approx(expected.sum().item(), rel=1e-5)
    assert found[1].item() == 0


def test_tables_have_a_row_for_each_group_and_all_formats_say_the_same():
    finished = {
        run(defence, seed): {20: REFERENCE, 40: HURT}
        for defence in ("none", "rna")
        for seed in (1, 2)
    }
    groups = make_groups(Answers(finished, REFERENCE, REFERENCE))
    assert [group.label for group in groups] == [
        "reference", "retrained", "rmu + hidden_mse", "rmu + hidden_mse, rna",
    ]  # fmt: skip
    table = main_table(groups, LAYOUT)
    assert all(len(row) == len(table.head) for row in table.rows)
    assert "KL to retrained, forget" in table.head
    assert as_csv(table).splitlines()[3].startswith("rmu + hidden_mse,2,10 / 10,")
    assert r"rmu + hidden\_mse & 2 & 10 / 10 & 0.30" in as_latex(table)
    for each in tables(groups, LAYOUT):
        assert all(len(row) == len(each.head) for row in each.rows)
    said = list(defence_sentences(make_defences(Answers(finished, REFERENCE))))
    assert any("2 pairs of checkpoints" in sentence for sentence in said)


def test_curves_are_means_over_the_steps_that_all_seeds_were_asked_at():
    finished = {
        run(seed=1): {2: answers(forget=6), 4: HURT},
        run(seed=2): {4: answers(forget=5, retain=8, before_forget=4, before_control=9)},
    }
    table = curve_table(Answers(finished, REFERENCE), LAYOUT)
    # HURT has 3, 8, 7 and 2 of 10 right; step 2 was asked of one seed only.
    assert table.rows == [["rmu + hidden_mse", "2", "4", "0.40", "0.80", "0.80", "0.30"]]
    assert table.head[3] == "forget set (n = 10)"


def test_forget_tokens_that_mixing_used_and_those_it_did_not_are_told_apart():
    held_out = frozenset(("places", f"{i}") for i in range(4))
    known = Answers({run("mixing"): {20: HURT}}, REFERENCE)
    table = held_out_table(known, held_out, BEFORE)
    _, row = table.rows
    assert (row[2], row[4]) == ("6", "4")
    assert row[3].startswith("0.00 ")  # the two right ones are held out
    assert row[5].startswith("0.50 ")


def test_tables_of_answers_come_back_from_json_and_from_version_0_1_0():
    assert from_json(to_json(HURT)) == {
        cell: {name: replace(each, asked={}) for name, each in sheet.items()}
        for cell, sheet in HURT.items()
    }
    old = {
        (f"{cell.position}/{cell.variant.removesuffix('_token')}" if cell.position else
         "forget" if cell.question_set == "forget" else "clean"): {
            name: (each.correct, each.logprob) for name, each in sheet.items()
        }
        for cell, sheet in HURT.items()
    }  # fmt: skip
    again = from_old_json(old, {f"{i}": "places" for i in range(N)})
    for part in (FORGET, RETAIN, BEFORE):
        assert {k: (a.correct, a.logprob) for k, a in pooled(again, part).items()} == {
            k: (a.correct, a.logprob) for k, a in pooled(HURT, part).items()
        }


def test_a_run_s_figure_is_the_mean_over_its_last_quarter():
    """A last step alone may be far from the one before it."""
    steps = {10: answers(forget=9), 30: answers(forget=6), 40: answers(forget=2)}
    assert late(steps) == (30, 40)
    _, group = make_groups(Answers({run(): steps}, REFERENCE))
    assert group.accuracy[FORGET].value == pytest.approx(0.4)


def test_a_late_checkpoint_that_was_asked_less_is_left_out():
    steps = {30: answers(5, forget=5), 40: answers(forget=2)}
    _, group = make_groups(Answers({run(): steps}, REFERENCE))
    assert (group.n[FORGET], group.accuracy[FORGET].value) == (N, 0.2)


def test_intervals_learn_from_other_groups_how_much_runs_vary():
    """Two runs that happen to agree are not sure of their mean where others' runs differ."""

    def width(others: tuple[int, int]) -> float:
        finished = {run(seed=seed): {40: answers(forget=5)} for seed in (1, 2)}
        finished |= {
            run("rna", seed): {40: answers(forget=n)}
            for seed, n in zip((1, 2), others, strict=True)
        }
        _, alike, _ = make_groups(Answers(finished, REFERENCE))
        return alike.accuracy[FORGET].high - alike.accuracy[FORGET].low

    assert width((1, 9)) > width((5, 5))


def test_runs_in_two_heaps_are_told():
    found = {
        run(seed=seed): {40: answers(forget=n)} for seed, n in enumerate((1, 1, 9, 9), start=1)
    }
    groups = make_groups(Answers(found, REFERENCE))
    (sentence,) = heap_sentences(groups, LAYOUT)
    assert "forget set: the runs fall into two heaps, around 0.10 and 0.90" in sentence
