"""Accuracy over groups of subjects is weighed as lm-eval weighs it."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import aggregate_subtask_metrics, mean_stderr, pooled_sample_stderr

from defuse.evaluate import Evaluation, MCAnswer, Settings, wilson
from defuse.evaluate.groups import group_figures, subjects_of
from defuse.questions import ORIGINAL, Question

rights = st.lists(st.lists(st.booleans(), min_size=2, max_size=9), min_size=1, max_size=5)


@given(rights)
def test_groups_are_weighed_as_lm_eval_weighs_them(rights: list[list[bool]]) -> None:
    found = evaluation({f"s{i}": each for i, each in enumerate(rights)})
    (figure,) = group_figures(found, {"all": list(subjects_of(found))})["all"].values()
    sizes = [len(each) for each in rights]
    means = [sum(each) / len(each) for each in rights]
    stderrs = [mean_stderr(each) for each in rights]
    assert figure.n == sum(sizes)
    assert figure.accuracy.value == pytest.approx(aggregate_subtask_metrics(means, sizes, True))
    assert figure.stderr == pytest.approx(float(pooled_sample_stderr(stderrs, sizes)), abs=1e-12)


def evaluation(subjects: Mapping[str, list[bool]]) -> Evaluation:
    answers = [
        MCAnswer(
            Question(f"{name}/{i}", "?", ("a", "b", "c", "d"), 0, subject=name),
            (-1.0, -2.0 if right else -0.5, -3.0, -3.0),
            truncated=False,
        )
        for name, each in subjects.items()
        for i, right in enumerate(each)
    ]
    return Evaluation("m", Settings(), None, {ORIGINAL: answers}, "", 0.0)


def test_a_group_by_hand() -> None:
    """3 of 4 and 0 of 2: 3/6; Σ n p (1 − p) = 4 · 3/16 = 3/4, over 6 − 2 and 6: √(1/32)."""
    found = evaluation({"one": [True, True, True, False], "two": [False, False], "other": [True]})
    figures = group_figures(found, {"both": ["one", "two"], **subjects_of(found)})
    both = figures["both"][ORIGINAL]
    assert both.n == 6
    assert both.accuracy == wilson(3, 6)
    assert both.stderr == pytest.approx(math.sqrt(1 / 32))
    assert figures["other"][ORIGINAL].stderr is None
