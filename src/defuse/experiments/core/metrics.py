"""Figures from answers: accuracy, vulnerability, distance to the retrained model, defences.

Runs of one group differ only in their seed and answer the same questions, so intervals resample
runs and questions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

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

Checkpoints = Mapping[int, AnswerTable]  # by step
Finished = Mapping[Run, Checkpoints]


@dataclass(frozen=True)
class Panel:
    """The answers of several models to the questions of a slice that all of them answered.

    A row of `answers` holds one model's, in the order of `ids`.
    """

    ids: Sequence[QuestionKey]
    answers: Sequence[Sequence[Answer]]

    @property
    def n(self) -> int:
        """The number of questions."""
        return len(self.ids)

    @cached_property
    def correct(self) -> Tensor:
        """1 for each right answer and 0 for each wrong one, (models, questions)."""
        return self._table("correct")

    @cached_property
    def logprob(self) -> Tensor:
        """The log-probability of each right choice among the choices (nats), likewise."""
        return self._table("logprob")

    def _table(self, field: str) -> Tensor:
        rows = [[float(getattr(each, field)) for each in row] for row in self.answers]
        return torch.tensor(rows, dtype=torch.float64)


def panel(part: Slice, tables: Sequence[AnswerTable]) -> Panel:
    """The answers to the questions of a slice that all `tables` have, in the first one's order."""
    known = [pooled(table, part) for table in tables]
    ids = [name for name in known[0] if all(name in each for each in known)]
    return Panel(ids, [[each[name] for name in ids] for each in known])


@dataclass(frozen=True)
class Means:
    """Accuracies by slice, on the questions that the reference and all checkpoints answered.

    `n`: the number of those questions. `of`: by run and step.
    """

    n: Mapping[Slice, int]
    reference: Mapping[Slice, float]
    of: Mapping[tuple[Run, int], Mapping[Slice, float]]


def make_means(finished: Finished, reference: AnswerTable, parts: Iterable[Slice]) -> Means:
    """The accuracies of every checkpoint; a slice that no question is left of is left out."""
    places = [(run, step) for run, steps in finished.items() for step in steps]
    tables = [reference, *(finished[run][step] for run, step in places)]
    found = {part: each for part in parts if (each := panel(part, tables)).n}
    shares = {part: each.correct.mean(dim=1).tolist() for part, each in found.items()}
    first, *rest = ({part: own[row] for part, own in shares.items()} for row in range(len(tables)))
    counts = {part: each.n for part, each in found.items()}
    return Means(counts, first, dict(zip(places, rest, strict=True)))


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, after their last step.

    `n`, `accuracy` and `logprob` (of the right choice among the choices, nats) by slice.
    `vulnerability` and `any_sentence` (the harm of any sentence, (unlearned − reference) of
    (original − control token)) by position, in accuracy and in nats; empty for the reference model.
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
    any_sentence: Mapping[str, tuple[Interval, Interval]] = field(default_factory=dict)

    def is_readable(self, position: str) -> bool:
        """Whether the vulnerability says something: control tokens alone do no significant harm."""
        return position not in self.any_sentence or self.any_sentence[position][0].low <= 0


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
    for label, runs in by_group(finished).items():
        last = [steps[max(steps)] for steps in runs.values()]
        groups.append(make_group(label, next(iter(runs)).defence, last, reference, retrained))
    return groups


def by_group(finished: Finished) -> dict[str, dict[Run, Checkpoints]]:
    """The finished runs of each group."""
    groups: dict[str, dict[Run, Checkpoints]] = {}
    for run, steps in finished.items():
        groups.setdefault(run.group, {})[run] = steps
    return groups


def make_group(
    label: str,
    defence: str,
    runs: Sequence[AnswerTable],
    reference: AnswerTable,
    retrained: AnswerTable | None = None,
) -> Group:
    """Summarise runs' last answers."""
    every = {part: panel(part, [reference, *runs]) for part in slices(reference)}
    panels = {part: each for part, each in every.items() if each.n}
    unlearned = any(run is not reference for run in runs)
    tried = [
        position
        for position in positions(reference)
        if unlearned and Slice("retain", FORGET_TOKEN, position) in panels
    ]
    return Group(
        label,
        defence,
        len(runs),
        {part: each.n for part, each in panels.items()},
        {part: accuracy(each.correct[1:]) for part, each in panels.items()},
        {part: _mean(each.logprob[1:]) for part, each in panels.items()},
        _added(panels, {p: _slices(p, CONTROL_TOKEN, FORGET_TOKEN) for p in tried}),
        {} if retrained is None else {p: kl_to(retrained, p, runs) for p in (FORGET, RETAIN)},
        _added(panels, {p: (RETAIN, *_slices(p, CONTROL_TOKEN)) for p in tried}),
    )


def accuracy(correct: Tensor) -> Interval:
    """The share of right answers: Wilson's interval for one run, else over runs and questions."""
    if len(correct) == 1:
        return wilson(int(correct.sum()), correct.shape[1])
    return _mean(correct)


def _slices(position: str, *variants: str) -> tuple[Slice, ...]:
    return tuple(Slice("retain", variant, position) for variant in variants)


def _added(
    panels: Mapping[Slice, Panel], pairs: Mapping[str, tuple[Slice, ...]]
) -> dict[str, tuple[Interval, Interval]]:
    """(unlearned − reference) of (first − second slice) of each pair, in accuracy and in nats.

    On the questions that are in both slices; a pair without one is left out.
    """
    found = {}
    for name, pair in pairs.items():
        if not all(part in panels for part in pair):
            continue
        one, other = (panels[part] for part in pair)
        places = {question: place for place, question in enumerate(one.ids)}
        shared = [place for place, question in enumerate(other.ids) if question in places]
        rows = ([places[other.ids[place]] for place in shared], shared)
        if shared:
            found[name] = (
                _added_difference(one.correct[:, rows[0]], other.correct[:, rows[1]]),
                _added_difference(one.logprob[:, rows[0]], other.logprob[:, rows[1]]),
            )
    return found


def _added_difference(first: Tensor, second: Tensor) -> Interval:
    """The reference model is the first row."""
    reference = first[:1], second[:1]
    return statistics.added_difference(first[1:], second[1:], *reference, seed=BOOTSTRAP_SEED)


def kl_to(target: AnswerTable, part: Slice, runs: Sequence[AnswerTable]) -> Interval:
    """Mean of Σ q·(log q − log p) over the choices of each question, q the target's."""

    def divergence(ours: Answer, other: Answer) -> float:
        pairs = zip(ours.logprobs, other.logprobs, strict=True)
        return math.fsum(math.exp(q) * (q - p) for p, q in pairs)

    first, *rest = panel(part, [target, *runs]).answers
    return _mean(torch.tensor([list(map(divergence, row, first)) for row in rest]))


def make_defences(
    finished: Finished, reference: AnswerTable, matched_at: Sequence[str] | None = None
) -> list[Defence]:
    """Every group with a defence against the same method without one.

    `matched_at`: the positions to compare at matched forgetting; None is those that every
    checkpoint has answers for.
    """
    groups = by_group(finished)
    wanted = positions(reference) if matched_at is None else matched_at
    found = []
    for label, ours in groups.items():
        plain = next(iter(ours)).base_group
        if plain != label and plain in groups:
            theirs = groups[plain]
            matched = {each: match(theirs, ours, reference, each) for each in wanted}
            found.append(Defence(label, plain, _recovered(theirs, ours, reference), matched))
    return found


def _recovered(plain: Finished, defended: Finished, reference: AnswerTable) -> dict[str, Interval]:
    """The difference after a forget-token at the last step, over seeds, by position."""
    ours, theirs = (
        {run.seed: steps[max(steps)] for run, steps in runs.items()} for runs in (defended, plain)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    tables = [reference, *(ours[seed] for seed in seeds), *(theirs[seed] for seed in seeds)]
    recovered = {}
    for position in positions(reference) if seeds else ():
        after = panel(Slice("retain", FORGET_TOKEN, position), tables)
        if after.n:
            with_defence, without = after.correct[1:].chunk(2)
            recovered[position] = _mean(with_defence - without)
    return recovered


def match(
    plain: Finished, defended: Finished, reference: AnswerTable, position: str
) -> Matched | None:
    """Pair each checkpoint with a defence with one without, of the same seed.

    Candidates differ by at most `TOLERANCE` in forget accuracy and in retain accuracy, on the
    questions that all checkpoints were asked. Of several candidates the nearest in log-probability
    on the forget set is taken, since at chance accuracies no longer differ. Checkpoints that have
    not forgotten are left out. None if no pair is found.
    """
    every = [(run, step) for runs in (plain, defended) for run in runs for step in runs[run]]
    tables = [reference, *({**plain, **defended}[run][step] for run, step in every)]
    parts = (FORGET, RETAIN, Slice("retain", FORGET_TOKEN, position))
    forget, retain, after = (panel(part, tables) for part in parts)
    if not after.n:
        return None
    left, kept = (each.correct.mean(dim=1).tolist() for each in (forget, retain))
    depth, guess = forget.logprob.mean(dim=1).tolist(), chance(reference, FORGET)
    pairs: list[tuple[int, int]] = []
    for ours, (run, _) in enumerate(every, start=1):
        alike = [
            theirs
            for theirs, (other, _) in enumerate(every, start=1)
            if other in plain
            and other.seed == run.seed
            and abs(left[theirs] - left[ours]) <= TOLERANCE
            and abs(kept[theirs] - kept[ours]) <= TOLERANCE
        ]
        has_forgotten = left[ours] - guess <= (1 - FORGOTTEN) * (left[0] - guess)
        if run in defended and has_forgotten and alike:
            pairs.append((min(alike, key=lambda row: abs(depth[row] - depth[ours])), ours))
    if not pairs:
        return None
    without, with_defence = (list(rows) for rows in zip(*pairs, strict=True))
    steps = ((every[a - 1][0].seed, every[a - 1][1], every[b - 1][1]) for a, b in pairs)
    gains = (_mean(each[with_defence] - each[without]) for each in (after.correct, after.logprob))
    return Matched(tuple(steps), after.n, *gains)


def chance(table: AnswerTable, part: Slice) -> float:
    """The accuracy of guessing on a slice."""
    return fmean(answer.chance for answer in pooled(table, part).values())


def _mean(table: Tensor) -> Interval:
    return bootstrap_mean(table, BOOTSTRAP_SEED)
