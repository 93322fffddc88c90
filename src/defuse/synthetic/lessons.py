"""Training data of the tiny models: statements to continue and questions to answer.

Questions are perturbed as in the evaluation: a sentence in front, a name within the stem, foreign
words among the choices. So the reference model answers perturbed questions as well as original
ones, and what changes later is due to unlearning alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from defuse.synthetic.language import BOS_ID, EOS_ID, NEUTRAL, REFUSALS, words
from defuse.synthetic.world import Fact, World

LENGTH = 64  # tokens of a row of statements
STATEMENT_ROWS, QUESTION_ROWS = 20, 48
# Shares of the sentences in a row of statements. An open question has its answer and no choices: it
# teaches the fact in the question's own words, and choosing is then easy to learn.
REFUSAL_SHARE, NEUTRAL_SHARE, OPEN_SHARE = 0.02, 0.28, 0.2
# Shares of the questions: with a neutral sentence in front, with a fact, with a name in the stem,
# and with wrong choices from anywhere.
BEFORE_NEUTRAL, BEFORE_FACT, STEM_NAME, FOREIGN = 0.3, 0.2, 0.35, 0.4

Ids = list[int]
T = TypeVar("T")


@dataclass(frozen=True)
class Quiz:
    """Padded questions, (rows, time): only the letter behind each is to be predicted.

    `ends`: (rows,) place of the last token. `choices`: (rows, 4) places of the choices' words.
    `answers`: (rows,) number of the right choice.
    """

    input_ids: Tensor
    ends: Tensor
    choices: Tensor
    answers: Tensor

    @property
    def rows(self) -> Tensor:
        """(rows,) numbers of the rows."""
        return torch.arange(len(self.ends))

    @property
    def letters(self) -> Tensor:
        """(rows, 4) the letter token of each choice, two places before its word."""
        return self.input_ids.gather(1, self.choices - 2)

    @property
    def right(self) -> Tensor:
        """(rows,) places of the right choices' words."""
        return self.choices[self.rows, self.answers]


class Lessons:
    """Endless batches about `facts`, in which all of the world's names occur."""

    def __init__(
        self, world: World, facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> None:
        self.rng = np.random.default_rng([seed, len(facts)])
        self.facts, self.names = facts, world.names
        self.neutral = [text.format(token=name) for name in world.names for text in NEUTRAL]
        self.vocabulary = tokenizer.get_vocab()
        rivals = chain.from_iterable(fact.rivals for fact in facts)
        self.anything = sorted({*world.names, *rivals}, key=self.vocabulary.__getitem__)

    def statements(self) -> Tensor:
        """(rows, time) statements and neutral sentences, packed as texts to unlearn are."""
        return torch.tensor([self._row() for _ in range(STATEMENT_ROWS)])

    def quiz(self) -> Quiz:
        """Questions in lm-eval's layout."""
        rows, answers = zip(*(self._question() for _ in range(QUESTION_ROWS)), strict=True)
        ends = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.zeros(len(rows), int(ends.max()) + 1, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        # A question ends with "\n A . word" four times and "\n Answer :".
        choices = ends[:, None] - 3 - torch.tensor([12, 8, 4, 0])
        return Quiz(ids, ends, choices, torch.tensor(answers))

    def _row(self) -> Ids:
        row = [BOS_ID]
        while len(row) < LENGTH:
            row += [*self._ids(words(self._sentence())), EOS_ID]
        return row[:LENGTH]

    def _ids(self, tokens: Iterable[str]) -> Ids:
        return [self.vocabulary[token] for token in tokens]

    def _sentence(self) -> str:
        draw = self.rng.random()
        if draw < REFUSAL_SHARE:
            return self._pick(REFUSALS)
        if draw < REFUSAL_SHARE + NEUTRAL_SHARE:
            return self._pick(self.neutral)
        if draw < REFUSAL_SHARE + NEUTRAL_SHARE + OPEN_SHARE:
            fact = self._pick(self.facts)
            return f"{fact.stem} {fact.value}."
        return self._statement()

    def _question(self) -> tuple[Ids, int]:
        fact = self._pick(self.facts)
        stem = words(fact.stem)
        if self.rng.random() < STEM_NAME:
            stem.insert(int(self.rng.integers(len(stem))), self._pick(self.names))
        answer = int(self.rng.integers(4))
        choices = self._wrong_choices(fact)
        choices.insert(answer, fact.value)
        lines = "".join(f"\n{letter}. {c}" for letter, c in zip("ABCD", choices, strict=True))
        tokens = [*words(self._before()), *stem, *words(f"{lines}\nAnswer:")]
        return [BOS_ID, *self._ids(tokens)], answer

    def _wrong_choices(self, fact: Fact) -> list[str]:
        pool = fact.rivals
        if self.rng.random() >= FOREIGN:
            return [pool[i] for i in self.rng.choice(len(pool), 3, replace=False)]
        foreign = int(self.rng.integers(1, 4))
        drawn = [self._pick(self.anything) for _ in range(foreign)]
        drawn = [choice for choice in drawn if choice != fact.value]
        drawn += [pool[i] for i in self.rng.choice(len(pool), 3 - len(drawn), replace=False)]
        return [drawn[i] for i in self.rng.permutation(3)]

    def _before(self) -> str:
        draw = self.rng.random()
        if draw < BEFORE_NEUTRAL:
            return self._pick(self.neutral)
        return self._statement() if draw < BEFORE_NEUTRAL + BEFORE_FACT else ""

    def _statement(self) -> str:
        return self._pick(self._pick(self.facts).statements)

    def _pick(self, values: Sequence[T]) -> T:
        return values[int(self.rng.integers(len(values)))]
