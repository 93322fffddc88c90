"""Figures from answers: accuracy, vulnerability, and RNA against none where both forgot alike.

Values are arranged (runs, questions); runs of one row differ in their seed and were asked the same
questions, so intervals resample both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.evaluate import Interval, bootstrap_mean, wilson
from defuse.real.answers import Answers
from defuse.real.facts import FORGET
from defuse.real.grid import Run

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
    kept = shared_ids("clean", runs, base)

    def accuracy(form: str, names: Sequence[str]) -> Interval:
        table = _values(form, runs, names, RIGHT)
        if len(runs) == 1:
            return wilson(round(table.sum().item()), len(names))
        return bootstrap_mean(table, BOOTSTRAP_SEED)

    unlearned = any(answers is not base for answers in runs)
    effects = [_added(position, runs, base, kept, what) for position, what in EFFECTS]
    return Row(
        label,
        len(runs),
        (len(ids), len(kept)),
        accuracy(FORGET, ids),
        accuracy("clean", kept),
        accuracy("before/forget", kept),
        accuracy("before/control", kept),
        bootstrap_mean(_values("before/forget", runs, kept, LOGPROB), BOOTSTRAP_SEED),
        *(effects if unlearned else ()),
    )


EFFECTS = (("before", RIGHT), ("before", LOGPROB), ("choice", RIGHT))


def _added(
    position: str, runs: Sequence[Answers], base: Answers, ids: Sequence[str], what: int
) -> Interval:
    """Vulnerability: (unlearned − base) of (control − forget), question by question."""
    ours, reference = (
        _values(f"{position}/control", each, ids, what)
        - _values(f"{position}/forget", each, ids, what)
        for each in (runs, [base] * len(runs))
    )
    return bootstrap_mean(ours - reference, BOOTSTRAP_SEED)


def match(
    plain: Mapping[Run, Mapping[int, Answers]],
    noised: Mapping[Run, Mapping[int, Answers]],
    base: Answers,
) -> Matched | None:
    """Pair each forgetful checkpoint with RNA with one without, of the same seed.

    Candidates differ by at most `TOLERANCE` in forget accuracy and in retain accuracy, on the
    questions that all checkpoints were asked; of several the nearest in the log-probability of the
    forget domain's answers is taken, since accuracy no longer tells checkpoints at chance apart.
    None if no pair is found.
    """
    sheets = [s for runs in (plain, noised) for steps in runs.values() for s in steps.values()]
    ids, kept = shared_ids(FORGET, sheets, base), shared_ids("clean", sheets, base)
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
            _values("before/forget", with_noise, kept, what)
            - _values("before/forget", without, kept, what),
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
        and gap(rival, "clean", kept, RIGHT) <= TOLERANCE
    ]
    return min(alike, key=lambda step: gap(rivals[step], FORGET, ids, LOGPROB), default=None)


def _has_forgotten(sheet: Answers, base: Answers, ids: Sequence[str]) -> bool:
    known = mean(base, FORGET, ids, RIGHT) - CHANCE
    return mean(sheet, FORGET, ids, RIGHT) - CHANCE <= (1 - FORGOTTEN) * known


def shared_ids(form: str, runs: Sequence[Answers], base: Answers) -> list[str]:
    """Ids that every run and the base were asked, in the base's order."""
    return [name for name in base[form] if all(name in answers[form] for answers in runs)]


def _values(form: str, runs: Sequence[Answers], ids: Sequence[str], what: int) -> Tensor:
    values = [[float(answers[form][name][what]) for name in ids] for answers in runs]
    return torch.tensor(values, dtype=torch.float64)


def mean(answers: Answers, form: str, ids: Sequence[str], what: int) -> float:
    """The mean of `RIGHT` or `LOGPROB` over some of the questions of a form."""
    return sum(answers[form][name][what] for name in ids) / len(ids)
