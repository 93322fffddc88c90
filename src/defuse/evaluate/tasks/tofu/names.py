"""Names of forgotten authors before questions about retained ones, and the harm that they do.

The paper's question (arXiv 2501.19202) on TOFU's data: a sentence with the name of a forgotten
author precedes a question about a retained one. The control is the name of a retained author whom
the question is not about.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.data.text import QuestionAnswer, Triggered
from defuse.evaluate.tasks.tofu.ask import mean_logprobs
from defuse.evaluate.tasks.tofu.data import PER_AUTHOR, Item
from defuse.models.load import LoadedModel
from defuse.questions import SENTENCE
from defuse.statistics import Interval, bootstrap_mean
from defuse.utils.random import generator

WORD = r"[^\W\d_a-z][^\W\d_]*(?:[-'’][^\W\d_]+)*"
NAME = re.compile(rf"\b{WORD}(?: {WORD})+")
POSSESSIVE = re.compile(r"['’]s?$")
SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class NamedQuestion:
    """A retained author's question after a forgotten author's name, and after a control name."""

    forget: Triggered
    control: Triggered


@dataclass(frozen=True)
class NameScore:
    """The answer's mean log-probability (nats) after a forgotten name and after a control name."""

    question: str
    forget: float
    control: float


def author_names(pairs: Sequence[QuestionAnswer]) -> list[str]:
    """Each author's name, in order: the capitalised words that most of the 20 pairs share."""
    blocks = (pairs[at : at + PER_AUTHOR] for at in range(0, len(pairs), PER_AUTHOR))
    return [_name(block) for block in blocks]


def _name(pairs: Sequence[QuestionAnswer]) -> str:
    counts: Counter[str] = Counter()
    for pair in pairs:
        found = NAME.findall(f"{pair.question}\n{pair.answer}")
        counts.update({POSSESSIVE.sub("", name) for name in found})
    return max(sorted(counts), key=lambda name: (counts[name], len(name)))


def put_names_before(
    items: Sequence[Item], forget: Sequence[str], retain: Sequence[str], seed: int
) -> list[NamedQuestion]:
    """Each item after a name of `forget`, and after one of `retain` that it does not mention.

    The names are drawn from (seed, question).
    """
    return [
        NamedQuestion(*(_after(_draw(names, item, seed), item) for names in (forget, retain)))
        for item in items
    ]


def _draw(names: Sequence[str], item: Item, seed: int) -> str:
    foreign = [name for name in names if name not in f"{item.question} {item.answer}"] or names
    rng = generator(seed, "name", item.question)
    return foreign[int(torch.randint(len(foreign), (), generator=rng))]


def _after(name: str, item: Item) -> Triggered:
    return Triggered(SENTENCE.format(token=name), QuestionAnswer(item.question, item.answer))


def ask_named(
    loaded: LoadedModel, questions: Sequence[NamedQuestion], items: Sequence[Item]
) -> list[NameScore]:
    """Score the answers after both names; `items` are the same questions without names."""
    scores = mean_logprobs(loaded, [[each.forget, each.control] for each in questions])
    return [
        NameScore(item.question, forget, control)
        for item, (forget, control) in zip(items, scores, strict=True)
    ]


def name_harm(runs: Sequence[Sequence[NameScore]]) -> Interval:
    """Control − forgotten name, nats per token, of one model or of several runs."""
    return bootstrap_mean(_harm(runs), SEED)


def added_harm(
    runs: Sequence[Sequence[NameScore]], reference: Sequence[Sequence[NameScore]]
) -> Interval:
    """(Unlearned − reference) of control − forgotten name, paired by question, nats per token.

    The harm of a forgotten author's name beyond that of a retained author's name, and beyond that
    before unlearning; 0 if unlearning makes nothing worse.
    """
    return bootstrap_mean(_harm(runs) - _harm(reference), SEED)


def any_name_harm(
    runs: Sequence[Sequence[NameScore]],
    plain: Sequence[Sequence[float]],
    reference: Sequence[Sequence[NameScore]],
    reference_plain: Sequence[Sequence[float]],
) -> Interval:
    """(Unlearned − reference) of no name − control name, paired by question, nats per token.

    `plain`: the answers' mean log-probabilities without a name. Above 0, any name does harm, and
    what a forgotten one adds says nothing.
    """
    own, other = _lost(runs, plain), _lost(reference, reference_plain)
    return bootstrap_mean(own - other, SEED)


def _lost(runs: Sequence[Sequence[NameScore]], plain: Sequence[Sequence[float]]) -> Tensor:
    control = torch.tensor([[each.control for each in run] for run in runs], dtype=torch.float64)
    return torch.tensor(plain, dtype=torch.float64) - control


def _harm(runs: Sequence[Sequence[NameScore]]) -> Tensor:
    rows = [[each.control - each.forget for each in run] for run in runs]
    return torch.tensor(rows, dtype=torch.float64)
