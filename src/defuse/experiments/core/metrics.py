"""Figures from answers: accuracy, vulnerability, distance to the retrained model, defences.

Runs of one group differ only in their seed and answer the same questions, so intervals resample
runs and questions.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from defuse import statistics
from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_TOKEN,
    ORIGINAL,
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
class Answers:
    """The answers of all models: finished runs by step, the reference and the retrained model."""

    finished: Finished
    reference: AnswerTable
    retrained: AnswerTable | None = None

    def where(self, keep: Callable[[Run], bool]) -> "Answers":
        """The same of some runs."""
        some = {run: steps for run, steps in self.finished.items() if keep(run)}
        return replace(self, finished=some)

    def groups(self) -> Mapping[str, Finished]:
        """The finished runs of each group."""
        groups: dict[str, dict[Run, Checkpoints]] = {}
        for run, steps in self.finished.items():
            groups.setdefault(run.group, {})[run] = steps
        return groups


def last_answers(runs: Finished) -> dict[Run, AnswerTable]:
    """Each run's answers after its last step."""
    return {run: steps[max(steps)] for run, steps in runs.items()}


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
    return panels((part,), tables)[0]


def panels(parts: Sequence[Slice], tables: Sequence[AnswerTable]) -> list[Panel]:
    """A panel for each slice, of the questions that all `tables` have in all of the slices."""
    known = [[pooled(table, part) for table in tables] for part in parts]
    ids = [name for name in known[0][0] if all(name in each for own in known for each in own)]
    return [Panel(ids, [[each[name] for name in ids] for each in own]) for own in known]


@dataclass(frozen=True)
class Means:
    """Accuracies by slice, on the questions that the reference and all checkpoints answered.

    `n`: the number of those questions. `of`: by run and step.
    """

    n: Mapping[Slice, int]
    reference: Mapping[Slice, float]
    of: Mapping[tuple[Run, int], Mapping[Slice, float]]


def make_means(answers: Answers, parts: Iterable[Slice]) -> Means:
    """The accuracies of every checkpoint; a slice that no question is left of is left out."""
    places = [(run, step) for run, steps in answers.finished.items() for step in steps]
    tables = [answers.reference, *(answers.finished[run][step] for run, step in places)]
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


def make_groups(answers: Answers) -> list[Group]:
    """The reference model, the retrained model, and every group of runs."""
    reference, retrained = answers.reference, answers.retrained
    others = {"reference": reference} | ({} if retrained is None else {"retrained": retrained})
    groups = [make_group(name, "", [each], reference, retrained) for name, each in others.items()]
    for label, runs in answers.groups().items():
        last = list(last_answers(runs).values())
        groups.append(make_group(label, next(iter(runs)).defence, last, reference, retrained))
    return groups


def make_group(
    label: str,
    defence: str,
    runs: Sequence[AnswerTable],
    reference: AnswerTable,
    retrained: AnswerTable | None = None,
) -> Group:
    """Summarise runs' last answers."""
    tables = [reference, *runs]
    found = {part: each for part in slices(reference) if (each := panel(part, tables)).n}
    unlearned = any(run is not reference for run in runs)
    tried = positions(reference) if unlearned else []
    return Group(
        label,
        defence,
        len(runs),
        {part: each.n for part, each in found.items()},
        {part: accuracy(each.correct[1:]) for part, each in found.items()},
        {part: _mean(each.logprob[1:]) for part, each in found.items()},
        _harms(CONTROL_TOKEN, FORGET_TOKEN, tried, tables),
        {} if retrained is None else {p: kl_to(retrained, p, runs) for p in (FORGET, RETAIN)},
        _harms(ORIGINAL, CONTROL_TOKEN, tried, tables),
    )


def accuracy(correct: Tensor) -> Interval:
    """The share of right answers: Wilson's interval for one run, else over runs and questions."""
    if len(correct) == 1:
        return wilson(int(correct.sum()), correct.shape[1])
    return _mean(correct)


def _harms(
    first: str, second: str, places: Iterable[str], tables: Sequence[AnswerTable]
) -> dict[str, tuple[Interval, Interval]]:
    """(unlearned − reference) of (first − second variant) by position, in accuracy and in nats.

    On the retain questions that all models answered in both variants; `tables` has the reference
    model first.
    """
    found = {}
    for place in places:
        parts = [RETAIN if v == ORIGINAL else Slice("retain", v, place) for v in (first, second)]
        one, other = panels(parts, tables)
        if one.n:
            found[place] = _added(one.correct, other.correct), _added(one.logprob, other.logprob)
    return found


def _added(first: Tensor, second: Tensor) -> Interval:
    reference = first[:1], second[:1]
    return statistics.added_difference(first[1:], second[1:], *reference, seed=BOOTSTRAP_SEED)


def kl_to(target: AnswerTable, part: Slice, runs: Sequence[AnswerTable]) -> Interval:
    """Mean of Σ q·(log q − log p) over the choices of each question, q the target's."""

    def divergence(ours: Answer, other: Answer) -> float:
        pairs = zip(ours.logprobs, other.logprobs, strict=True)
        return math.fsum(math.exp(q) * (q - p) for p, q in pairs)

    first, *rest = panel(part, [target, *runs]).answers
    return _mean(torch.tensor([list(map(divergence, row, first)) for row in rest]))


def make_defences(answers: Answers, matched_at: Sequence[str] | None = None) -> list[Defence]:
    """Every group with a defence against the same method without one.

    `matched_at`: the positions to compare at matched forgetting; None is those that every
    checkpoint has answers for.
    """
    groups, reference = answers.groups(), answers.reference
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
        {run.seed: table for run, table in last_answers(runs).items()} for runs in (defended, plain)
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
    places = [(run, step) for runs in (plain, defended) for run in runs for step in runs[run]]
    tables = [reference, *({**plain, **defended}[run][step] for run, step in places)]
    retain, after = panels((RETAIN, Slice("retain", FORGET_TOKEN, position)), tables)
    if not after.n:
        return None
    forget = panel(FORGET, tables)
    left, kept = (each.correct.mean(dim=1).tolist() for each in (forget, retain))
    depth, guess = forget.logprob.mean(dim=1).tolist(), chance(reference, FORGET)
    rows = dict(enumerate(places, start=1))
    pairs: list[tuple[int, int]] = []
    for ours in (row for row, (run, _) in rows.items() if run in defended):
        alike = [
            row
            for row, (run, _) in rows.items()
            if run in plain
            and run.seed == rows[ours][0].seed
            and abs(left[row] - left[ours]) <= TOLERANCE
            and abs(kept[row] - kept[ours]) <= TOLERANCE
        ]
        if alike and left[ours] - guess <= (1 - FORGOTTEN) * (left[0] - guess):
            pairs.append((min(alike, key=lambda row: abs(depth[row] - depth[ours])), ours))
    if not pairs:
        return None
    without, with_defence = (list(each) for each in zip(*pairs, strict=True))
    steps = ((rows[a][0].seed, rows[a][1], rows[b][1]) for a, b in pairs)
    gains = (_mean(each[with_defence] - each[without]) for each in (after.correct, after.logprob))
    return Matched(tuple(steps), after.n, *gains)


def chance(table: AnswerTable, part: Slice) -> float:
    """The accuracy of guessing on a slice."""
    return fmean(answer.chance for answer in pooled(table, part).values())


def _mean(table: Tensor) -> Interval:
    return bootstrap_mean(table, BOOTSTRAP_SEED)
