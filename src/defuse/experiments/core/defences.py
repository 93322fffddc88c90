"""What a defence changes, at the end of training and at matched forgetting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.experiments.core.answers import (
    FORGET,
    FORGET_TOKEN,
    RETAIN,
    AnswerTable,
    Slice,
    positions,
)
from defuse.experiments.core.metrics import (
    Answers,
    Finished,
    chance,
    late_answers,
    make_figures,
    panel,
    panels,
)
from defuse.few_seeds import seeded_means
from defuse.statistics import Interval

# Two checkpoints are at matched forgetting if neither accuracy differs by more.
TOLERANCE = 0.05
# A run has forgotten when this share of what the reference model knew above chance is gone.
FORGOTTEN = 0.5


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

    `recovered`: difference of the late accuracy after a forget-token, by position.
    `matched`: the same at matched forgetting, by position; None without such a pair.
    """

    label: str
    against: str
    recovered: Mapping[str, Interval]
    matched: Mapping[str, Matched | None]


def make_defences(answers: Answers, matched_at: Sequence[str] | None = None) -> list[Defence]:
    """Every group with a defence against the same method without one.

    `matched_at`: the positions to compare at matched forgetting; None is those that every
    checkpoint has answers for.
    """
    groups, reference = answers.groups(), answers.reference
    wanted = positions(reference) if matched_at is None else matched_at
    plain = {label: next(iter(ours)).base_group for label, ours in groups.items()}
    against = {label: name for label, name in plain.items() if name != label and name in groups}
    recovered = _pooled(
        {
            (label, place): gain
            for label, name in against.items()
            for place, gain in _recovered(groups[name], groups[label], reference).items()
        }
    )
    pairs = {
        (label, place): match(groups[name], groups[label], reference, place)
        for label, name in against.items()
        for place in wanted
    }
    accuracies = _pooled({key: found.accuracy for key, found in pairs.items() if found})
    logprobs = _pooled({key: found.logprob for key, found in pairs.items() if found})

    def matched(key: tuple[str, str]) -> Matched | None:
        found = pairs[key]
        return found and Matched(found.steps, found.n, accuracies[key], logprobs[key])

    return [
        Defence(
            label,
            name,
            {place: gain for (own, place), gain in recovered.items() if own == label},
            {place: matched((label, place)) for place in wanted},
        )
        for label, name in against.items()
    ]


def _pooled(tables: Mapping[tuple[str, str], Tensor]) -> dict[tuple[str, str], Interval]:
    """The means of all tables, by label and position, with intervals over questions and seeds."""
    found: dict[tuple[str, str], Interval] = {}
    for place in dict.fromkeys(place for _, place in tables):
        own = {key: table for key, table in tables.items() if key[1] == place}
        found |= dict(zip(own, seeded_means(list(own.values())), strict=True))
    return {key: found[key] for key in tables}


def _recovered(plain: Finished, defended: Finished, reference: AnswerTable) -> dict[str, Tensor]:
    """Differences of the late accuracies after a forget-token, (seeds, questions), by position."""
    ours, theirs = (
        {run.seed: tables for run, tables in late_answers(runs).items()}
        for runs in (defended, plain)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return {}
    with_defence, without = (
        make_figures([own[seed] for seed in seeds], reference, None)[1] for own in (ours, theirs)
    )
    parts = {place: Slice("retain", FORGET_TOKEN, place) for place in positions(reference)}
    return {
        place: with_defence["accuracy", part] - without["accuracy", part]
        for place, part in parts.items()
        if ("accuracy", part) in with_defence and ("accuracy", part) in without
    }


@dataclass(frozen=True)
class Pairs:
    """Pairs of checkpoints at matched forgetting, and what the defence changes in them.

    `steps`: see `Matched`. `accuracy`, `logprob`: means over each seed's pairs, (seeds, questions).
    """

    steps: tuple[tuple[int, int, int], ...]
    n: int
    accuracy: Tensor
    logprob: Tensor


def match(
    plain: Finished, defended: Finished, reference: AnswerTable, position: str
) -> Pairs | None:
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
    steps = tuple((rows[a][0].seed, rows[a][1], rows[b][1]) for a, b in pairs)
    by_seed = {
        seed: [place for place, each in enumerate(steps) if each[0] == seed] for seed, *_ in steps
    }

    def gains(table: Tensor) -> Tensor:
        change = table[with_defence] - table[without]
        return torch.stack([change[places].mean(dim=0) for places in by_seed.values()])

    return Pairs(steps, after.n, gains(after.correct), gains(after.logprob))
