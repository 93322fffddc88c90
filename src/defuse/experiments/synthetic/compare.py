"""Figures from the lab's answers: what each arm forgot and kept, what triggers do, and how far it
is from the model that never saw the forget domain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from defuse.evaluate import Interval, bootstrap_mean
from defuse.experiments.core.answers import CLEAN, FORGET, Answers
from defuse.experiments.core.metrics import (
    BOOTSTRAP_SEED,
    LOGPROB,
    RIGHT,
    Matched,
    accuracy,
    match,
    shared_ids,
    values,
    vulnerability,
)
from defuse.experiments.synthetic.exam import POSITIONS
from defuse.experiments.synthetic.grid import Run

FOUR = 2  # place of the four log-probabilities in an answer, behind RIGHT and LOGPROB
Finished = Mapping[Run, Mapping[int, Answers]]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, after their last step.

    `accuracy` and `logprob` (of the right answer among the four, nats) by form. `vulnerability` by
    position, in shares of questions and in nats; empty for the base model. `kl_to_gold`: KL(gold ‖
    model) of the answers' distribution (nats a question) on forget and on retain questions.
    """

    label: str
    runs: int
    accuracy: Mapping[str, Interval]
    logprob: Mapping[str, Interval]
    vulnerability: Mapping[str, tuple[Interval, Interval]]
    kl_to_gold: Mapping[str, Interval]


@dataclass(frozen=True)
class Defence:
    """An arm minus the same method without any defence, over seeds.

    `recovered`: difference of accuracy after a forget-term by position, after the last step.
    `matched`: the same between checkpoints that forgot and kept alike, by position; None without
    such a pair.
    """

    label: str
    against: str
    recovered: Mapping[str, Interval]
    matched: Mapping[str, Matched | None]


def make_group(label: str, runs: Sequence[Answers], base: Answers, gold: Answers) -> Group:
    """Summarise runs' last answers."""
    forms = [form for form in base if all(form in answers for answers in runs)]
    ids = {form: shared_ids(form, runs, base) for form in forms}
    unlearned = any(answers is not base for answers in runs)
    return Group(
        label,
        len(runs),
        {form: accuracy(form, runs, ids[form]) for form in forms},
        {form: _mean(values(form, runs, ids[form], LOGPROB)) for form in forms},
        {
            position: _vulnerabilities(position, runs, base, ids[f"{position}/forget"])
            for position in POSITIONS
            if unlearned
        },
        {form: kl_to_gold(form, runs, gold, ids[form]) for form in (FORGET, CLEAN)},
    )


def _vulnerabilities(
    position: str, runs: Sequence[Answers], base: Answers, ids: Sequence[str]
) -> tuple[Interval, Interval]:
    hits, nats = (vulnerability(position, runs, base, ids, what) for what in (RIGHT, LOGPROB))
    return hits, nats


def kl_to_gold(form: str, runs: Sequence[Answers], gold: Answers, ids: Sequence[str]) -> Interval:
    """Mean of Σ p_gold·(log p_gold − log p) over the four answers of each question."""

    def divergence(answers: Answers, name: str) -> float:
        ours, theirs = answers[form][name][FOUR], gold[form][name][FOUR]
        return math.fsum(math.exp(q) * (q - p) for p, q in zip(ours, theirs, strict=True))

    return _mean(torch.tensor([[divergence(a, name) for name in ids] for a in runs]))


def make_groups(finished: Finished, base: Answers, gold: Answers) -> list[Group]:
    """Base, gold, and every group of runs by its label."""
    by_label: dict[str, list[Answers]] = {}
    for run, steps in finished.items():
        by_label.setdefault(run.label, []).append(steps[max(steps)])
    named = {"base": [base], "gold": [gold], **by_label}
    return [make_group(label, runs, base, gold) for label, runs in named.items()]


def make_defences(finished: Finished, base: Answers) -> list[Defence]:
    """Every arm beside the same method and retain loss without a defence."""
    groups: dict[str, dict[Run, Mapping[int, Answers]]] = {}
    for run, steps in finished.items():
        groups.setdefault(run.label, {})[run] = steps
    firsts = {label: next(iter(runs)) for label, runs in groups.items()}
    plain = {(r.method, r.retain): label for label, r in firsts.items() if r.arm == "none"}
    return [
        _defence(label, plain[run.method, run.retain], groups, base)
        for label, run in firsts.items()
        if run.arm != "none" and (run.method, run.retain) in plain
    ]


def _defence(label: str, plain: str, groups: Mapping[str, Finished], base: Answers) -> Defence:
    ours, theirs = groups[label], groups[plain]
    seeds = sorted({r.seed for r in ours} & {r.seed for r in theirs})
    last = [
        [next(s[max(s)] for r, s in runs.items() if r.seed == seed) for seed in seeds]
        for runs in (ours, theirs)
    ]
    recovered = {}
    for position in POSITIONS:
        form = f"{position}/forget"
        ids = shared_ids(form, [*last[0], *last[1]], base)
        with_arm, without = (values(form, runs, ids, RIGHT) for runs in last)
        recovered[position] = _mean(with_arm - without)
    on_the_way = ("before", "statement")
    matched = {p: match(theirs, ours, base, f"{p}/forget") for p in on_the_way}
    return Defence(label, plain, recovered, matched)


def _mean(table: torch.Tensor) -> Interval:
    return bootstrap_mean(table, BOOTSTRAP_SEED)
