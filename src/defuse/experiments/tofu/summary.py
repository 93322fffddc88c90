"""Figures from answers, with intervals over questions, and over runs that differ in their seed.

Values are arranged (runs, questions); all runs of a table were asked the same questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from defuse.evaluate import Interval, bootstrap_mean
from defuse.experiments.tofu.ask import Answered, BehindName
from defuse.experiments.tofu.data import FORGET, REAL_AUTHORS, RETAIN, WORLD_FACTS
from defuse.experiments.tofu.metrics import (
    ForgetQuality,
    Mean,
    forget_quality,
    model_utility,
    probability,
    probability_among,
    truth_hidden,
    truth_kept,
    truth_ratio,
)
from defuse.statistics import RESAMPLES
from defuse.utils.random import generator

SEED = 0
KEPT = (RETAIN, REAL_AUTHORS, WORLD_FACTS)
BLOCK = 2**22  # numbers resampled at a time

Sets = Mapping[str, Sequence[Answered]]


@dataclass(frozen=True)
class SetFigures:
    """Of `n` questions: probability, ROUGE-L recall and truth ratio, means with their intervals.

    `truth` is max(0, 1 − R), on the forget set min(R, 1/R).
    """

    n: int
    probability: Interval
    rouge: Interval
    truth: Interval


@dataclass(frozen=True)
class Figures:
    """What TOFU says of one model, or of runs that differ in their seed.

    `utility`: None where one of its three sets was not asked. `quality`: a test for each run
    against the gold standard of its seed, by the geometric mean as in TOFU's code;
    `quality_arithmetic` by the paper's mean.
    """

    runs: int
    sets: Mapping[str, SetFigures]
    utility: Interval | None
    quality: Sequence[ForgetQuality] = ()
    quality_arithmetic: Sequence[ForgetQuality] = ()


def summarise(runs: Sequence[Sets], gold: Sequence[Sets] = ()) -> Figures:
    """Figures of `runs`; `gold`: for each the answers of the model taught the retain set alone."""
    tables = {name: torch.stack([_table(name, run[name]) for run in runs]) for name in runs[0]}
    return Figures(
        len(runs),
        {name: _figures(table) for name, table in tables.items()},
        _utility([tables[name] for name in KEPT]) if set(KEPT) <= tables.keys() else None,
        _qualities(runs, gold, "geometric"),
        _qualities(runs, gold, "arithmetic"),
    )


def ratios(answered: Sequence[Answered], mean: Mean) -> list[float]:
    """Each question's truth ratio R."""
    return [truth_ratio(each.paraphrased, each.perturbed, mean) for each in answered]


def name_effect(
    runs: Sequence[Sequence[BehindName]], base: Sequence[Sequence[BehindName]]
) -> Interval:
    """(Unlearned − base) of (control − forgotten name), question by question, nats per token.

    The harm that a forgotten author's name does to a kept author's answer, beyond what a kept
    name does and beyond what it did before unlearning; 0 where unlearning made nothing worse.
    """
    return bootstrap_mean(_harm(runs) - _harm(base), SEED)


def name_harm(runs: Sequence[Sequence[BehindName]]) -> Interval:
    """Control − forgotten name: the model's own difference, nats per token."""
    return bootstrap_mean(_harm(runs), SEED)


def _harm(runs: Sequence[Sequence[BehindName]]) -> Tensor:
    rows = [[each.control - each.forget for each in run] for run in runs]
    return torch.tensor(rows, dtype=torch.float64)


def _table(name: str, answered: Sequence[Answered]) -> Tensor:
    """Probability, ROUGE-L and truth of every question, (3, questions)."""
    among = name in (REAL_AUTHORS, WORLD_FACTS)
    chances = [
        probability_among(each.logprob, each.perturbed) if among else probability(each.logprob)
        for each in answered
    ]
    truth = truth_hidden if name == FORGET else truth_kept
    truths = [truth(ratio) for ratio in ratios(answered, "arithmetic")]
    return torch.tensor([chances, [each.rouge for each in answered], truths], dtype=torch.float64)


def _figures(table: Tensor) -> SetFigures:
    chance, rouge, truth = (bootstrap_mean(table[:, kind], SEED) for kind in range(3))
    return SetFigures(table.shape[2], chance, rouge, truth)


def _utility(tables: Sequence[Tensor]) -> Interval:
    """The harmonic mean of the nine means, averaged over runs, (runs, 3, questions) each.

    Its interval is a bootstrap crossed over runs and each set's questions.
    """
    nine = torch.cat([table.mean(dim=2) for table in tables], dim=1)
    runs = len(nine)
    draws = generator(SEED, "utility", runs, *(table.shape[2] for table in tables))
    found = []
    block = max(1, BLOCK // max(table.numel() for table in tables))
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        means = torch.cat([_resampled(table, count, draws) for table in tables], dim=1)
        chosen = torch.randint(runs, (count, runs), generator=draws)
        found.append(_harmonic(means).T.gather(1, chosen).mean(dim=1))
    low, high = torch.cat(found).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(fmean(map(model_utility, nine.tolist())), float(low), float(high))


def _resampled(table: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Means of `count` resamples of the questions, (runs, 3, count)."""
    questions = table.shape[2]
    picked = torch.randint(questions, (count, questions), generator=draws)
    return table[:, :, picked].mean(dim=3)


def _harmonic(means: Tensor) -> Tensor:
    """Over dimension 1; 0 where one of the means is 0."""
    return means.shape[1] / means.reciprocal().sum(dim=1)


def _qualities(runs: Sequence[Sets], gold: Sequence[Sets], mean: Mean) -> list[ForgetQuality]:
    pairs = zip(runs, gold, strict=True) if gold else ()
    return [
        forget_quality(ratios(run[FORGET], mean), ratios(other[FORGET], mean))
        for run, other in pairs
    ]
