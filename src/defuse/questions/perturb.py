"""Perturbations: pure functions that put a token into a question.

Each draw depends on (seed, purpose, question id) alone: a question's perturbation does not change
when other questions are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch

from defuse.questions.question import (
    CONTROL_TOKEN,
    FORGET_TOKEN,
    Position,
    Question,
    Replaced,
    Variant,
)
from defuse.utils.config import check_fields
from defuse.utils.errors import UsageError, require
from defuse.utils.random import generator

SENTENCE = "I read about {token} today."


@dataclass(frozen=True)
class Perturbation:
    """Forget-tokens, their control tokens (or none) and their position.

    Token i has control i; the shorter list is repeated. `sentence` is used for `before` and
    contains `{token}`. Raises UsageError if there are no tokens, or no `{token}` in the sentence.
    """

    tokens: tuple[str, ...]
    position: Position
    controls: tuple[str, ...] = ()
    sentence: str = SENTENCE

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.tokens:
            raise UsageError("perturb: there are no tokens; give at least one")
        if "{token}" not in self.sentence:
            raise UsageError(f"sentence: {self.sentence!r} has no {{token}}; add it for the token")

    def variants(self, question: Question, seed: int) -> dict[Variant, Question]:
        """The question with a forget-token and with its control token.

        The pair is drawn from (seed, question id). A pair with a token that the question mentions
        is skipped if any other is left: a control token that is the answer would help the model.
        """
        pairs = self._pairs()
        start = _draw(len(pairs), seed, "token", question.id)
        turn = pairs[start:] + pairs[:start]
        foreign = (pair for pair in turn if not any(question.mentions(token) for token in pair))
        pair = next(foreign, turn[0])
        names: tuple[Variant, ...] = (FORGET_TOKEN, CONTROL_TOKEN)
        return {
            name: perturb(question, token, self.position, seed, self.sentence)
            for name, token in zip(names, pair, strict=False)
        }

    def _pairs(self) -> list[tuple[str, ...]]:
        lists = [self.tokens, self.controls] if self.controls else [self.tokens]
        return [tuple(each[i % len(each)] for each in lists) for i in range(max(map(len, lists)))]


def perturb(
    question: Question, token: str, position: Position, seed: int, sentence: str = SENTENCE
) -> Question:
    """Put `token` in place of a wrong choice, into the stem, or into a sentence in front.

    `choice` is the perturbation of Thaker et al. (2410.02879). The place (which choice, or before
    which word of the stem) depends on (seed, question id) alone: a control token has the place of
    its forget-token.
    """
    require(isinstance(question, Question), "question", question, "is no Question; give one")
    require(isinstance(token, str), "token", token, "is no text; give one")
    places = f"is unknown; use one of {', '.join(PLACES)}"
    require(position in get_args(Position), "position", position, places)
    return PLACES[position](question, token, seed, sentence)


def _into_choice(question: Question, token: str, seed: int, _: str) -> Question:
    wrong = [index for index in range(len(question.choices)) if index != question.answer]
    index = wrong[_draw(len(wrong), seed, "choice", question.id)]
    choices = tuple(token if i == index else text for i, text in enumerate(question.choices))
    replaced = _replaced(question, "choice", token, index, question.choices[index])
    return replace(question, choices=choices, replaced=replaced)


def _into_stem(question: Question, token: str, seed: int, _: str) -> Question:
    if question.prompt is not None and question.stem not in question.prompt:
        raise UsageError(
            f"question {question.id!r}: its prompt does not contain its question text, so no token "
            "can go into the stem; use position before or choice"
        )
    words = question.stem.split(" ")
    index = _draw(len(words), seed, "stem", question.id)
    stem = " ".join([*words[:index], token, *words[index:]])
    prompt = question.prompt and question.prompt.replace(question.stem, stem, 1)
    replaced = _replaced(question, "stem", token, index, "")
    return replace(question, stem=stem, prompt=prompt, replaced=replaced)


def _before(question: Question, token: str, _: int, sentence: str) -> Question:
    replaced = _replaced(question, "before", token, 0, "")
    return replace(question, before=sentence.replace("{token}", token), replaced=replaced)


def _replaced(
    question: Question, position: Position, token: str, index: int, original: str
) -> Replaced:
    return Replaced(position, token, index, original, foreign=not question.mentions(token))


def _draw(count: int, seed: int, *purpose: str) -> int:
    return int(torch.randint(count, (), generator=generator(seed, "perturb", *purpose)))


PLACES: Mapping[Position, Callable[[Question, str, int, str], Question]] = {
    "choice": _into_choice,
    "stem": _into_stem,
    "before": _before,
}
