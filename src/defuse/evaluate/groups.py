"""Accuracies of subjects and of groups of subjects, weighted as lm-evaluation-harness does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defuse.evaluate.answers import Evaluation, MCAnswer
from defuse.questions import ORIGINAL, Variant
from defuse.statistics import Interval, wilson

Groups = Mapping[str, Sequence[str]]  # the subjects of each group


@dataclass(frozen=True)
class GroupFigure:
    """The accuracy of a group of `n` questions, each of which counts once (`weight_by_size`).

    `accuracy` has Wilson's interval over all `n` questions. It ignores subjects, and is therefore a
    little too wide. `stderr` is lm-eval's, pooled within subjects; None if each has one question.
    """

    n: int
    accuracy: Interval
    stderr: float | None


def group_figures(evaluation: Evaluation, groups: Groups) -> dict[str, dict[Variant, GroupFigure]]:
    """Each group's figures, for every variant of the questions."""
    return {
        name: {
            variant: _figure(_by_subject(answers, subjects))
            for variant, answers in evaluation.answers.items()
        }
        for name, subjects in groups.items()
    }


def subjects_of(evaluation: Evaluation) -> Groups:
    """Each subject as a group of its own, in the questions' order."""
    found = dict.fromkeys(answer.question.subject for answer in evaluation.answers[ORIGINAL])
    return {subject: [subject] for subject in found if subject is not None}


def _by_subject(answers: Sequence[MCAnswer], subjects: Sequence[str]) -> list[list[bool]]:
    rights: dict[str | None, list[bool]] = {subject: [] for subject in subjects}
    for answer in answers:
        if answer.question.subject in rights:
            rights[answer.question.subject].append(answer.is_correct)
    return [each for each in rights.values() if each]


def _figure(rights: Sequence[Sequence[bool]]) -> GroupFigure:
    """`pooled_sample_stderr` of lm_eval/api/metrics.py, with each subject's standard error in it:
    √(Σ_s n_s p_s (1 − p_s) / (n − number of subjects) / n)."""
    n = sum(map(len, rights))
    within = sum(sum(each) * (1 - sum(each) / len(each)) for each in rights)
    spare = n - len(rights)
    return GroupFigure(
        n=n,
        accuracy=wilson(sum(map(sum, rights)), n),
        stderr=math.sqrt(within / spare / n) if spare else None,
    )
