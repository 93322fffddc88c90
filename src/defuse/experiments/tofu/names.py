"""Does a forgotten author's name harm a question about another author?

The paper's question (arXiv 2501.19202) asked of TOFU: a sentence that names a forgotten author is
set before a question about one that was to be kept; its control names a kept author whom the
question is not about.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from defuse.data.text import QuestionAnswer, Triggered
from defuse.experiments.tofu.data import PER_AUTHOR, Item
from defuse.questions import SENTENCE
from defuse.utils.random import generator

WORD = r"[^\W\d_a-z][^\W\d_]*(?:[-'’][^\W\d_]+)*"
NAME = re.compile(rf"\b{WORD}(?: {WORD})+")
POSSESSIVE = re.compile(r"['’]s?$")


@dataclass(frozen=True)
class Named:
    """A kept author's question behind a forgotten author's name, and behind a kept one's."""

    forget: Triggered
    control: Triggered


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


def name_before(
    items: Sequence[Item], forget: Sequence[str], retain: Sequence[str], seed: int
) -> list[Named]:
    """Each item behind a name of `forget` and behind one of `retain` that it does not mention.

    Which ones is drawn from (seed, question).
    """
    return [
        Named(*(_behind(_draw(names, item, seed), item) for names in (forget, retain)))
        for item in items
    ]


def _draw(names: Sequence[str], item: Item, seed: int) -> str:
    foreign = [name for name in names if name not in f"{item.question} {item.answer}"] or names
    rng = generator(seed, "name", item.question)
    return foreign[int(torch.randint(len(foreign), (), generator=rng))]


def _behind(name: str, item: Item) -> Triggered:
    return Triggered(SENTENCE.format(token=name), QuestionAnswer(item.question, item.answer))
