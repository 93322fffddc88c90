"""Figures from answers: accuracy, vulnerability, distance to the retrained model, defences.

Values are arranged (runs, questions). Runs of one group differ only in their seed and answer the
same questions, so intervals resample runs and questions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from defuse import statistics
from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_TOKEN,
    RETAIN,
    Answer,
    AnswerTable,
    QuestionKey,
    Slice,
    pooled,
    positions,
    slices,
)
from defuse.experiments.core.scenario import Run
from defuse.statistics import Interval, bootstrap_mean, wilson

BOOTSTRAP_SEED = 0
# Two checkpoints are at matched forgetting if neither accuracy differs by more.
TOLERANCE = 0.05
# A run has forgotten when this share of what the reference model knew above chance is gone.
FORGOTTEN = 0.5

Quantity = Literal["correct", "logprob"]


Checkpoints = Mapping[int, AnswerTable]  # by step
Finished = Mapping[Run, Checkpoints]


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, after their last step.

    `n`, `accuracy` and `logprob` (of the right choice among the choices, nats) by slice.
    `vulnerability` by position, in accuracy and in nats; empty for the reference model.
    `kl_to_retrained`: KL(retrained ‖ model) of the choices' distribution (nats a question) on the
    forget and retain sets; empty without a retrained model.
    """

    label: str
    defence: str
    runs: int
    n: Mapping[Slice, int]
    accuracy: Mapping[Slice, Interval]
    logprob: Mapping[Slice, Interval]
    vulnerability: Mapping[str, tuple[Interval, Interval]]
    kl_to_retrained: Mapping[Slice, Interval]


@dataclass(frozen=True)
class Matched:
    """A defence minus none over pairs of checkpoints (same seed) at matched forgetting.

    `steps`: (seed, step without the defence, step with it) of each pair. `accuracy` and `logprob`:
    the differences after a forget-token over `n` questions; positive where the defence helps.
    """

    steps: tuple[tuple[int, int, int], ...]
    n: int
    accuracy: Interval
    logprob: Interval


@dataclass(frozen=True)
class Defence:
    """A defence minus the same method without one, over seeds.

    `recovered`: difference of the accuracy after a forget-token at the last step, by position.
    `matched`: the same at matched forgetting, by position; None without such a pair.
    """

    label: str
    against: str
    recovered: Mapping[str, Interval]
    matched: Mapping[str, Matched | None]


def make_groups(
    finished: Finished, reference: AnswerTable, retrained: AnswerTable | None = None
) -> list[Group]:
    """The reference model, the retrained model, and every group of runs."""
    groups = [make_group("reference", "", [reference], reference, retrained)]
    if retrained is not None:
        groups.append(make_group("retrained", "", [retrained], reference, retrained))
    for label, runs in _by_group(finished).items():
        last = [steps[max(steps)] for steps in runs.values()]
        defence = next(iter(runs)).defence
        groups.append(make_group(label, defence, last, reference, retrained))
    return groups


def make_group(
    label: str,
    defence: str,
    runs: Sequence[AnswerTable],
    reference: AnswerTable,
    retrained: AnswerTable | None = None,
) -> Group:
    """Summarise runs' last answers."""
    asked = [set(slices(run)) for run in runs]
    parts = [part for part in slices(reference) if all(part in each for each in asked)]
    ids = {part: shared_ids(part, runs, reference) for part in parts}
    unlearned = any(run is not reference for run in runs)
    return Group(
        label,
        defence,
        len(runs),
        {part: len(ids[part]) for part in parts},
        {part: accuracy(part, runs, ids[part]) for part in parts},
        {part: _mean(values(part, runs, ids[part], "logprob")) for part in parts},
        {
            position: _vulnerabilities(position, runs, reference)
            for position in positions(reference)
            if unlearned and Slice("retain", FORGET_TOKEN, position) in parts
        },
        {} if retrained is None else _distances(runs, retrained, ids),
    )


def make_defences(
    finished: Finished, reference: AnswerTable, matched_at: Sequence[str] | None = None
) -> list[Defence]:
    """Every group with a defence against the same method without one.

    `matched_at`: the positions to compare at matched forgetting; None is those that every
    checkpoint has answers for.
    """
    groups = _by_group(finished)
    found = []
    for label, ours in groups.items():
        plain = next(iter(ours)).base_group
        if plain != label and plain in groups:
            found.append(_defence(label, plain, groups, reference, matched_at))
    return found


def accuracy(part: Slice, runs: Sequence[AnswerTable], ids: Sequence[QuestionKey]) -> Interval:
    """The share of right answers: Wilson's interval for one run, else over runs and questions."""
    table = values(part, runs, ids, "correct")
    if len(runs) == 1:
        return wilson(round(table.sum().item()), len(ids))
    return _mean(table)


def vulnerability(
    position: str,
    runs: Sequence[AnswerTable],
    reference: AnswerTable,
    ids: Sequence[QuestionKey],
    quantity: Quantity,
) -> Interval:
    """(unlearned − reference) of (control token − forget-token), question by question."""

    control, forget = (
        Slice("retain", variant, position) for variant in (CONTROL_TOKEN, FORGET_TOKEN)
    )
    tables = (
        values(part, each, ids, quantity)
        for each in (runs, [reference] * len(runs))
        for part in (control, forget)
    )
    return statistics.vulnerability(*tables, seed=BOOTSTRAP_SEED)


def match(
    plain: Mapping[Run, Checkpoints],
    defended: Mapping[Run, Checkpoints],
    reference: AnswerTable,
    position: str,
) -> Matched | None:
    """Pair each checkpoint with a defence with one without, of the same seed.

    Candidates differ by at most `TOLERANCE` in forget accuracy and in retain accuracy, on the
    questions that all checkpoints were asked. Of several candidates the nearest in log-probability
    on the forget set is taken, since at chance accuracies no longer differ. Checkpoints that have
    not forgotten are left out. None if no pair is found.
    """
    both = (*plain.values(), *defended.values())
    tables = [table for steps in both for table in steps.values()]
    part = Slice("retain", FORGET_TOKEN, position)
    if not all(part in slices(table) for table in tables):
        return None
    forget, retain = (shared_ids(each, tables, reference) for each in (FORGET, RETAIN))
    pairs = []
    for run, steps in defended.items():
        rivals = next((s for other, s in plain.items() if other.seed == run.seed), {})
        for step, table in steps.items():
            found = _nearest(table, rivals, forget, retain)
            if found is not None and _has_forgotten(table, reference, forget):
                pairs.append(((run.seed, found, step), rivals[found], table))
    if not pairs:
        return None
    without, with_defence = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
    gains = (
        _mean(values(part, with_defence, retain, what) - values(part, without, retain, what))
        for what in ("correct", "logprob")
    )
    return Matched(tuple(pair[0] for pair in pairs), len(retain), *gains)


def shared_ids(
    part: Slice, runs: Sequence[AnswerTable], reference: AnswerTable
) -> list[QuestionKey]:
    """Questions of a slice that every run and the reference answered, in the reference's order."""
    answered = [pooled(run, part).keys() for run in runs]
    return [name for name in pooled(reference, part) if all(name in each for each in answered)]


def values(
    part: Slice, runs: Sequence[AnswerTable], ids: Sequence[QuestionKey], quantity: Quantity
) -> Tensor:
    """A quantity of each answer, (runs, questions)."""
    answers = (pooled(run, part) for run in runs)
    table = [[float(getattr(each[name], quantity)) for name in ids] for each in answers]
    return torch.tensor(table, dtype=torch.float64)


def mean(table: AnswerTable, part: Slice, ids: Sequence[QuestionKey], quantity: Quantity) -> float:
    """The mean of a quantity over some questions of a slice."""
    answers = pooled(table, part)
    return sum(getattr(answers[name], quantity) for name in ids) / len(ids)


def chance(table: AnswerTable, part: Slice) -> float:
    """The accuracy of guessing on a slice."""
    return fmean(answer.chance for answer in pooled(table, part).values())


def _mean(table: Tensor) -> Interval:
    return bootstrap_mean(table, BOOTSTRAP_SEED)


def _by_group(finished: Finished) -> dict[str, dict[Run, Checkpoints]]:
    groups: dict[str, dict[Run, Checkpoints]] = {}
    for run, steps in finished.items():
        groups.setdefault(run.group, {})[run] = steps
    return groups


def _vulnerabilities(
    position: str, runs: Sequence[AnswerTable], reference: AnswerTable
) -> tuple[Interval, Interval]:
    ids = shared_ids(Slice("retain", FORGET_TOKEN, position), runs, reference)
    return (
        vulnerability(position, runs, reference, ids, "correct"),
        vulnerability(position, runs, reference, ids, "logprob"),
    )


def _distances(
    runs: Sequence[AnswerTable], retrained: AnswerTable, ids: Mapping[Slice, Sequence[QuestionKey]]
) -> dict[Slice, Interval]:
    return {part: kl_to(retrained, part, runs, ids[part]) for part in (FORGET, RETAIN)}


def kl_to(
    target: AnswerTable, part: Slice, runs: Sequence[AnswerTable], ids: Sequence[QuestionKey]
) -> Interval:
    """Mean of Σ q·(log q − log p) over the choices of each question, q the target's."""
    theirs = pooled(target, part)

    def divergence(ours: Answer, other: Answer) -> float:
        pairs = zip(ours.logprobs, other.logprobs, strict=True)
        return math.fsum(math.exp(q) * (q - p) for p, q in pairs)

    ours = [pooled(run, part) for run in runs]
    return _mean(torch.tensor([[divergence(t[name], theirs[name]) for name in ids] for t in ours]))


def _defence(
    label: str,
    plain: str,
    groups: Mapping[str, Finished],
    reference: AnswerTable,
    matched_at: Sequence[str] | None,
) -> Defence:
    ours, theirs = groups[label], groups[plain]
    seeds = sorted({run.seed for run in ours} & {run.seed for run in theirs})
    last = [
        [next(s[max(s)] for r, s in runs.items() if r.seed == seed) for seed in seeds]
        for runs in (ours, theirs)
    ]
    tables = [*last[0], *last[1]]
    recovered = {}
    for position in positions(reference) if seeds else ():
        part = Slice("retain", FORGET_TOKEN, position)
        if all(part in slices(table) for table in tables):
            ids = shared_ids(part, tables, reference)
            defended, without = (values(part, runs, ids, "correct") for runs in last)
            recovered[position] = _mean(defended - without)
    wanted = positions(reference) if matched_at is None else matched_at
    matched = {position: match(theirs, ours, reference, position) for position in wanted}
    return Defence(label, plain, recovered, matched)


def _nearest(
    table: AnswerTable,
    rivals: Checkpoints,
    forget: Sequence[QuestionKey],
    retain: Sequence[QuestionKey],
) -> int | None:
    """The step of the rival checkpoint at matched forgetting."""

    def gap(
        rival: AnswerTable, part: Slice, ids: Sequence[QuestionKey], quantity: Quantity
    ) -> float:
        return abs(mean(rival, part, ids, quantity) - mean(table, part, ids, quantity))

    alike = [
        step
        for step, rival in rivals.items()
        if gap(rival, FORGET, forget, "correct") <= TOLERANCE
        and gap(rival, RETAIN, retain, "correct") <= TOLERANCE
    ]
    return min(alike, key=lambda step: gap(rivals[step], FORGET, forget, "logprob"), default=None)


def _has_forgotten(table: AnswerTable, reference: AnswerTable, ids: Sequence[QuestionKey]) -> bool:
    guess = chance(reference, FORGET)
    known = mean(reference, FORGET, ids, "correct") - guess
    return mean(table, FORGET, ids, "correct") - guess <= (1 - FORGOTTEN) * known
