"""Figures from answers: accuracy, vulnerability, distance to the retrained model.

Runs of one group differ only in their seed and answer the same questions; intervals are over both.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

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
from defuse.experiments.core.scenario import Run, late
from defuse.few_seeds import seeded_means
from defuse.statistics import Interval, bootstrap_mean, wilson

BOOTSTRAP_SEED = 0

# A harm is a difference between two variants of the retain questions.
HARMS = {
    "vulnerability": (CONTROL_TOKEN, FORGET_TOKEN),
    "any_sentence": (ORIGINAL, CONTROL_TOKEN),
}
Figure = tuple[str, Any]  # a kind of figure, and its slice or position

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


def late_answers(runs: Finished) -> dict[Run, list[AnswerTable]]:
    """Each run's answers at its late checkpoints, whose mean is steadier than the last one's."""
    return {run: [steps[step] for step in late(steps)] for run, steps in runs.items()}


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
    """Runs that differ only in their seed, over their late checkpoints.

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


def make_groups(answers: Answers) -> list[Group]:
    """The reference model, the retrained model, and every group of runs."""
    reference, retrained = answers.reference, answers.retrained
    others = {"reference": reference} | ({} if retrained is None else {"retrained": retrained})
    found = [make_group(name, each, reference, retrained) for name, each in others.items()]
    named = answers.groups()
    tables = {
        label: make_figures(list(late_answers(runs).values()), reference, retrained)
        for label, runs in named.items()
    }
    return found + [
        _group(label, next(iter(runs)).defence, len(runs), *figures)
        for (label, runs), figures in zip(named.items(), _over_seeds(tables), strict=True)
    ]


def make_group(
    label: str,
    answers: AnswerTable,
    reference: AnswerTable,
    retrained: AnswerTable | None = None,
) -> Group:
    """Summarise one model's answers; intervals are over questions alone."""
    n, figures = make_figures([[answers]], reference, retrained)
    intervals = {
        (kind, place): accuracy(table) if kind == "accuracy" else _mean(table)
        for (kind, place), table in figures.items()
    }
    return _group(label, "", 1, n, intervals)


def _group(
    label: str,
    defence: str,
    runs: int,
    n: Mapping[Slice, int],
    intervals: Mapping[Figure, Interval],
) -> Group:
    def of(kind: str) -> dict[Any, Interval]:
        return {place: interval for (each, place), interval in intervals.items() if each == kind}

    def in_both_units(kind: str) -> dict[str, tuple[Interval, Interval]]:
        nats = of(f"{kind}, nats")
        return {place: (interval, nats[place]) for place, interval in of(kind).items()}

    return Group(
        label,
        defence,
        runs,
        n,
        accuracy=of("accuracy"),
        logprob=of("logprob"),
        vulnerability=in_both_units("vulnerability"),
        kl_to_retrained=of("kl"),
        any_sentence=in_both_units("any_sentence"),
    )


def _over_seeds(
    groups: Mapping[str, tuple[Mapping[Slice, int], Mapping[Figure, Tensor]]],
) -> list[tuple[Mapping[Slice, int], Mapping[Figure, Interval]]]:
    """Every group's figures with intervals over questions and seeds.

    How much runs vary is learned from all groups together, for each figure by itself.
    """
    intervals: dict[str, dict[Figure, Interval]] = {label: {} for label in groups}
    for figure in dict.fromkeys(figure for _, own in groups.values() for figure in own):
        having = [label for label, (_, own) in groups.items() if figure in own]
        tables = [groups[label][1][figure] for label in having]
        means = seeded_means(tables, proportions=figure[0] == "accuracy")
        for label, mean in zip(having, means, strict=True):
            # A divergence is never below 0, though a symmetric interval may be.
            is_kl = figure[0] == "kl"
            intervals[label][figure] = replace(mean, low=max(0.0, mean.low)) if is_kl else mean
    return [(groups[label][0], own) for label, own in intervals.items()]


def accuracy(correct: Tensor) -> Interval:
    """The share of right answers: Wilson's interval for one model, else over models and questions.

    `correct`: (models, questions).
    """
    if len(correct) == 1:
        return wilson(int(correct.sum()), correct.shape[1])
    return _mean(correct)


def make_figures(
    runs: Sequence[Sequence[AnswerTable]], reference: AnswerTable, retrained: AnswerTable | None
) -> tuple[dict[Slice, int], dict[Figure, Tensor]]:
    """The numbers of questions by slice, and every figure as (runs, questions).

    A run's value is the mean over its tables. Harms are (unlearned − reference) of (first − second
    variant), in accuracy and in nats, on the retain questions that all models answered in both.
    """
    n, found = {}, {}
    for part in slices(reference):
        some = _answering(runs, (part,))
        each = panel(part, [reference, *chain.from_iterable(some)])
        if each.n:
            n[part] = each.n
            found["accuracy", part] = run_means(each.correct[1:], some)
            found["logprob", part] = run_means(each.logprob[1:], some)
        if retrained is not None and part in (FORGET, RETAIN):
            flat = list(chain.from_iterable(some))
            found["kl", part] = run_means(divergences(retrained, part, flat), some)
    if any(table is reference for own in runs for table in own):
        return n, found
    for (kind, variants), place in product(HARMS.items(), positions(reference)):
        parts = [RETAIN if v == ORIGINAL else Slice("retain", v, place) for v in variants]
        some = _answering(runs, parts)
        first, second = panels(parts, [reference, *chain.from_iterable(some)])
        for unit, table in (("", "correct"), (", nats", "logprob")) if first.n else ():
            change = getattr(first, table) - getattr(second, table)
            found[kind + unit, place] = run_means(change[1:], some) - change[:1]
    return n, found


def _answering(
    runs: Sequence[Sequence[AnswerTable]], parts: Sequence[Slice]
) -> list[list[AnswerTable]]:
    """Each run's tables that answer as many questions of `parts` as its last one does."""

    def counts(table: AnswerTable) -> list[int]:
        return [len(pooled(table, part)) for part in parts]

    return [[table for table in own if counts(table) == counts(own[-1])] for own in runs]


def run_means(values: Tensor, runs: Sequence[Sequence[AnswerTable]]) -> Tensor:
    """The mean over each run's tables, (runs, questions), of values by table."""
    return torch.stack([own.mean(dim=0) for own in values.split([len(own) for own in runs])])


def divergences(target: AnswerTable, part: Slice, tables: Sequence[AnswerTable]) -> Tensor:
    """Σ q·(log q − log p) over each question's choices, q the target's: (tables, questions)."""

    def divergence(ours: Answer, other: Answer) -> float:
        pairs = zip(ours.logprobs, other.logprobs, strict=True)
        return math.fsum(math.exp(q) * (q - p) for p, q in pairs)

    first, *rest = panel(part, [target, *tables]).answers
    return torch.tensor([list(map(divergence, row, first)) for row in rest], dtype=torch.float64)


def chance(table: AnswerTable, part: Slice) -> float:
    """The accuracy of guessing on a slice."""
    return fmean(answer.chance for answer in pooled(table, part).values())


def _mean(table: Tensor) -> Interval:
    return bootstrap_mean(table, BOOTSTRAP_SEED)
