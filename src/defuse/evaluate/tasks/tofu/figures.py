"""Figures of answers, with intervals over questions and over runs that differ in their seed.

Tensors have the shape (runs, questions); all runs answered the same questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

from defuse.evaluate.tasks.tofu.ask import Answered, Sets
from defuse.evaluate.tasks.tofu.data import FORGET, REAL_AUTHORS, RETAIN, WORLD_FACTS
from defuse.evaluate.tasks.tofu.metrics import (
    ForgetQuality,
    Mean,
    forget_quality,
    model_utility,
    probability,
    probability_among,
    truth_forgotten,
    truth_ratio,
    truth_retained,
)
from defuse.statistics import RESAMPLES, Interval, bootstrap_mean
from defuse.utils.random import generator

SEED = 0
RETAINED_SETS = (RETAIN, REAL_AUTHORS, WORLD_FACTS)
BLOCK = 2**22  # numbers resampled at a time
# Columns of `figure_cells`.
COLUMNS = (
    "forget: P",
    "ROUGE-L",
    "truth ratio",
    "forget quality (p)",
    "retain: P",
    "ROUGE-L",
    "truth ratio",
    "model utility",
)


@dataclass(frozen=True)
class SetFigures:
    """Means over `n` questions with their intervals: probability, ROUGE-L recall, truth ratio.

    `truth` is max(0, 1 − R), on the forget set min(R, 1/R).
    """

    n: int
    probability: Interval
    rouge: Interval
    truth: Interval


@dataclass(frozen=True)
class Figures:
    """TOFU's figures of one model, or of runs that differ in their seed.

    `utility`: None if one of its three sets was not asked. `quality`: each run's test against the
    retrained model of its seed, with the geometric mean as in TOFU's code; `quality_arithmetic`
    with the paper's mean.
    """

    runs: int
    sets: Mapping[str, SetFigures]
    utility: Interval | None
    quality: Sequence[ForgetQuality] = ()
    quality_arithmetic: Sequence[ForgetQuality] = ()


def summarise(runs: Sequence[Sets], retrained: Sequence[Sets] = ()) -> Figures:
    """Figures of `runs`; `retrained`: for each run, the retrained model's answers."""
    tables = {name: torch.stack([_table(name, run[name]) for run in runs]) for name in runs[0]}
    return Figures(
        len(runs),
        {name: _figures(table) for name, table in tables.items()},
        _utility([tables[name] for name in RETAINED_SETS])
        if set(RETAINED_SETS) <= tables.keys()
        else None,
        _qualities(runs, retrained, "geometric"),
        _qualities(runs, retrained, "arithmetic"),
    )


def ratios(answered: Sequence[Answered], mean: Mean) -> list[float]:
    """Each question's truth ratio R."""
    return [truth_ratio(each.paraphrased, each.perturbed, mean) for each in answered]


def _table(name: str, answered: Sequence[Answered]) -> Tensor:
    """Probability, ROUGE-L and truth of every question, (3, questions)."""
    among = name in (REAL_AUTHORS, WORLD_FACTS)
    chances = [
        probability_among(each.logprob, each.perturbed) if among else probability(each.logprob)
        for each in answered
    ]
    truth = truth_forgotten if name == FORGET else truth_retained
    truths = [truth(ratio) for ratio in ratios(answered, "arithmetic")]
    return torch.tensor([chances, [each.rouge for each in answered], truths], dtype=torch.float64)


def _figures(table: Tensor) -> SetFigures:
    chance, rouge, truth = (bootstrap_mean(table[:, kind], SEED) for kind in range(3))
    return SetFigures(table.shape[2], chance, rouge, truth)


def _utility(tables: Sequence[Tensor]) -> Interval:
    """The harmonic mean of the nine means, averaged over runs; `tables`: (runs, 3, questions) each.

    Its interval is a bootstrap, crossed over runs and over each set's questions.
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
    """The harmonic mean over dimension 1; 0 if one of the means is 0."""
    return means.shape[1] / means.reciprocal().sum(dim=1)


def _qualities(runs: Sequence[Sets], retrained: Sequence[Sets], mean: Mean) -> list[ForgetQuality]:
    pairs = zip(runs, retrained, strict=True) if retrained else ()
    return [
        forget_quality(ratios(run[FORGET], mean), ratios(other[FORGET], mean))
        for run, other in pairs
    ]


def figure_cells(figures: Figures, show: Callable[[Interval | None], str]) -> list[str]:
    """The cells below `COLUMNS`; `show` formats an interval. Quality is the median over runs."""
    forget, retain = figures.sets[FORGET], figures.sets[RETAIN]
    tests = [test.p_value for test in figures.quality]
    return [
        *map(show, (forget.probability, forget.rouge, forget.truth)),
        f"{median(tests):.2g}" if tests else "",
        *map(show, (retain.probability, retain.rouge, retain.truth)),
        show(figures.utility),
    ]
