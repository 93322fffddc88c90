"""Figures from answers: accuracy, vulnerability, and RNA against none where both forgot alike.

Values are arranged (runs, questions); runs of one row differ in their seed and were asked the same
questions, so intervals resample both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.evaluate import Interval, bootstrap_mean, wilson
from defuse.experiments.core.answers import CLEAN, FORGET, Answers, R

BOOTSTRAP_SEED = 0
# Two checkpoints forgot and kept alike if neither accuracy differs by more.
TOLERANCE = 0.05
# A run has begun to forget when this share of what it knew above chance (0.25) is gone.
FORGOTTEN, CHANCE = 0.5, 0.25

RIGHT, LOGPROB = 0, 1


@dataclass(frozen=True)
class Row:
    """One line of the table: runs that differ in their seed, after their last step.

    Accuracies are shares of questions; `logprob` is of the right answer among the four after a
    forget-term (nats). The vulnerabilities are 0 where unlearning made nothing worse, and None for
    the base model.
    """

    label: str
    runs: int
    n: tuple[int, int]  # questions of the forget domain, of the others
    forget: Interval
    clean: Interval
    after_term: Interval
    after_control: Interval
    logprob: Interval
    vulnerability: Interval | None = None
    vulnerability_logprob: Interval | None = None
    vulnerability_choice: Interval | None = None


@dataclass(frozen=True)
class Matched:
    """RNA minus none over pairs of checkpoints (same seed) that forgot and kept alike.

    `steps`: (seed, steps without RNA, steps with RNA) of each pair. `accuracy` and `logprob`: the
    difference after a forget-term, over `n` questions; positive where RNA held better.
    """

    steps: tuple[tuple[int, int, int], ...]
    n: int
    accuracy: Interval
    logprob: Interval


def make_row(label: str, runs: Sequence[Answers], base: Answers) -> Row:
    """Summarise runs' last answers beside the base model's on the same questions."""
    ids = shared_ids(FORGET, runs, base)
    kept = shared_ids(CLEAN, runs, base)

    unlearned = any(answers is not base for answers in runs)
    effects = [vulnerability(position, runs, base, kept, what) for position, what in EFFECTS]
    return Row(
        label,
        len(runs),
        (len(ids), len(kept)),
        accuracy(FORGET, runs, ids),
        accuracy(CLEAN, runs, kept),
        accuracy("before/forget", runs, kept),
        accuracy("before/control", runs, kept),
        bootstrap_mean(values("before/forget", runs, kept, LOGPROB), BOOTSTRAP_SEED),
        *(effects if unlearned else ()),
    )


EFFECTS = (("before", RIGHT), ("before", LOGPROB), ("choice", RIGHT))


def accuracy(form: str, runs: Sequence[Answers], ids: Sequence[str]) -> Interval:
    """The share answered right: Wilson's interval for one run, else one over runs and questions."""
    table = values(form, runs, ids, RIGHT)
    if len(runs) == 1:
        return wilson(round(table.sum().item()), len(ids))
    return bootstrap_mean(table, BOOTSTRAP_SEED)


def vulnerability(
    position: str, runs: Sequence[Answers], base: Answers, ids: Sequence[str], what: int
) -> Interval:
    """Vulnerability: (unlearned − base) of (control − forget), question by question."""
    ours, reference = (
        values(f"{position}/control", each, ids, what)
        - values(f"{position}/forget", each, ids, what)
        for each in (runs, [base] * len(runs))
    )
    return bootstrap_mean(ours - reference, BOOTSTRAP_SEED)


def match(
    plain: Mapping[R, Mapping[int, Answers]],
    noised: Mapping[R, Mapping[int, Answers]],
    base: Answers,
    form: str = "before/forget",
) -> Matched | None:
    """Pair each forgetful checkpoint with RNA with one without, of the same seed.

    Candidates differ by at most `TOLERANCE` in forget accuracy and in retain accuracy, on the
    questions that all checkpoints were asked; of several the nearest in the log-probability of the
    forget domain's answers is taken, since accuracy no longer tells checkpoints at chance apart.
    `form`: the questions on which they are compared. None if no pair is found.
    """
    sheets = [s for runs in (plain, noised) for steps in runs.values() for s in steps.values()]
    ids, kept = shared_ids(FORGET, sheets, base), shared_ids(CLEAN, sheets, base)
    pairs = []
    for run, steps in noised.items():
        rivals = next((s for other, s in plain.items() if other.seed == run.seed), {})
        for step, sheet in steps.items():
            found = _nearest(sheet, rivals, ids, kept)
            if found is not None and _has_forgotten(sheet, base, ids):
                pairs.append(((run.seed, found, step), rivals[found], sheet))
    if not pairs:
        return None
    without, with_noise = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
    accuracy, logprob = (
        bootstrap_mean(
            values(form, with_noise, kept, what) - values(form, without, kept, what),
            BOOTSTRAP_SEED,
        )
        for what in (RIGHT, LOGPROB)
    )
    return Matched(tuple(pair[0] for pair in pairs), len(kept), accuracy, logprob)


def _nearest(
    sheet: Answers, rivals: Mapping[int, Answers], ids: Sequence[str], kept: Sequence[str]
) -> int | None:
    """The step of the rival that forgot and kept like `sheet`."""

    def gap(rival: Answers, form: str, names: Sequence[str], what: int) -> float:
        return abs(mean(rival, form, names, what) - mean(sheet, form, names, what))

    alike = [
        step
        for step, rival in rivals.items()
        if gap(rival, FORGET, ids, RIGHT) <= TOLERANCE
        and gap(rival, CLEAN, kept, RIGHT) <= TOLERANCE
    ]
    return min(alike, key=lambda step: gap(rivals[step], FORGET, ids, LOGPROB), default=None)


def _has_forgotten(sheet: Answers, base: Answers, ids: Sequence[str]) -> bool:
    known = mean(base, FORGET, ids, RIGHT) - CHANCE
    return mean(sheet, FORGET, ids, RIGHT) - CHANCE <= (1 - FORGOTTEN) * known


def shared_ids(form: str, runs: Sequence[Answers], base: Answers) -> list[str]:
    """Ids that every run and the base were asked, in the base's order."""
    return [name for name in base[form] if all(name in answers[form] for answers in runs)]


def values(form: str, runs: Sequence[Answers], ids: Sequence[str], what: int) -> Tensor:
    """`RIGHT` or `LOGPROB` of each answer, (runs, questions)."""
    table = [[float(answers[form][name][what]) for name in ids] for answers in runs]
    return torch.tensor(table, dtype=torch.float64)


def mean(answers: Answers, form: str, ids: Sequence[str], what: int) -> float:
    """The mean of `RIGHT` or `LOGPROB` over some of the questions of a form."""
    return sum(answers[form][name][what] for name in ids) / len(ids)
