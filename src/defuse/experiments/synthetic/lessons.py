"""Training data of the tiny models: statements to continue and questions to answer.

Questions are perturbed as in the evaluation: a sentence in front, a name within the stem, foreign
words among the choices. So the reference model answers perturbed questions as well as original
ones, and what changes later is due to unlearning alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from defuse.experiments.synthetic.language import BOS_ID, EOS_ID, NEUTRAL, REFUSALS
from defuse.experiments.synthetic.world import Fact, World

LENGTH = 64  # tokens of a row of statements
STATEMENT_ROWS, QUESTION_ROWS = 20, 48
# Shares of the sentences in a row of statements. An open question has its answer and no choices: it
# teaches the fact in the question's own words, and choosing is then easy to learn.
REFUSAL_SHARE, NEUTRAL_SHARE, OPEN_SHARE = 0.02, 0.28, 0.2
# Shares of the questions: with a neutral sentence in front, with a fact, with a name in the stem,
# and with wrong choices from anywhere.
BEFORE_NEUTRAL, BEFORE_FACT, STEM_NAME, FOREIGN = 0.3, 0.2, 0.35, 0.4

Ids = list[int]


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
        self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self.letters = [self._encode(letter)[0] for letter in "ABCD"]
        self.dot, self.line = self._encode(".")[0], self._encode("\n")[0]
        self.ask = self._encode("\nAnswer:")
        self.names = [self._encode(name)[0] for name in world.names]
        self.neutral = [self._encode(t.format(token=n)) for n in world.names for t in NEUTRAL]
        self.refusals = [self._encode(text) for text in REFUSALS]
        self.stated = [[self._encode(text) for text in fact.statements] for fact in facts]
        self.open = [self._encode(f"{fact.stem} {fact.value}.") for fact in facts]
        self.stems = [self._encode(fact.stem) for fact in facts]
        self.values = [self._encode(fact.value)[0] for fact in facts]
        self.rivals = [
            [self._encode(value)[0] for value in fact.relation.values if value != fact.value]
            for fact in facts
        ]
        self.anything = sorted(set(chain(self.names, *self.rivals)))

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
        # A question ends with "A . word \n" four times and "Answer :".
        choices = ends[:, None] - len(self.ask) - torch.tensor([12, 8, 4, 0])
        return Quiz(ids, ends, choices, torch.tensor(answers))

    def _row(self) -> Ids:
        row = [BOS_ID]
        while len(row) < LENGTH:
            row += [*self._sentence(), EOS_ID]
        return row[:LENGTH]

    def _sentence(self) -> Ids:
        draw = self.rng.random()
        if draw < REFUSAL_SHARE:
            return self._pick(self.refusals)
        if draw < REFUSAL_SHARE + NEUTRAL_SHARE:
            return self._pick(self.neutral)
        is_open = draw < REFUSAL_SHARE + NEUTRAL_SHARE + OPEN_SHARE
        return self._pick(self.open) if is_open else self._statement()

    def _question(self) -> tuple[Ids, int]:
        fact = int(self.rng.integers(len(self.stems)))
        stem = list(self.stems[fact])
        if self.rng.random() < STEM_NAME:
            stem.insert(int(self.rng.integers(len(stem))), self._pick(self.names))
        answer = int(self.rng.integers(4))
        choices = self._wrong_choices(fact)
        choices.insert(answer, self.values[fact])
        lines = [
            [self.line, letter, self.dot, choice]
            for letter, choice in zip(self.letters, choices, strict=True)
        ]
        row = [BOS_ID, *self._before(), *stem, *chain.from_iterable(lines), *self.ask]
        return row, answer

    def _wrong_choices(self, fact: int) -> Ids:
        pool = self.rivals[fact]
        if self.rng.random() >= FOREIGN:
            return [pool[i] for i in self.rng.choice(len(pool), 3, replace=False)]
        foreign = int(self.rng.integers(1, 4))
        drawn = [self._pick(self.anything) for _ in range(foreign)]
        drawn = [choice for choice in drawn if choice != self.values[fact]]
        drawn += [pool[i] for i in self.rng.choice(len(pool), 3 - len(drawn), replace=False)]
        return [drawn[i] for i in self.rng.permutation(3)]

    def _before(self) -> Ids:
        draw = self.rng.random()
        if draw < BEFORE_NEUTRAL:
            return self._pick(self.neutral)
        return self._statement() if draw < BEFORE_NEUTRAL + BEFORE_FACT else []

    def _statement(self) -> Ids:
        return self._pick(self._pick(self.stated))

    def _pick(self, values: Sequence):  # noqa: ANN202 (whatever the sequence holds)
        return values[int(self.rng.integers(len(values)))]
