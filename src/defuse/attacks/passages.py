"""Texts of the forget and the retain set, drawn and batched for attacks that measure on them."""

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import AttackData
from defuse.data.collate import TextBatch, collate
from defuse.data.text import Encoded, QuestionAnswer, encode
from defuse.evaluate.loglikelihood import max_length
from defuse.questions import ask, continuations
from defuse.utils.errors import UsageError
from defuse.utils.random import generator

WHOLE = 10**9  # tokens: longer than any text


class Drawing(Protocol):
    """The settings of an attack that draws texts: `texts` from each set, each of at most `length`
    tokens, `batch_size` at a time, drawn from `seed`."""

    @property
    def texts(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...


def passages(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    name: str,
    drawing: Drawing,
) -> list[TextBatch]:
    """Return texts of the set `name` in batches, the longest first.

    Long texts are cut. If no texts are given, questions with their right answers take their place;
    only the answers are predicted, and questions that do not fit are left out. Raises UsageError
    for a text without a token to predict, and if no question fits.
    """
    length = min(drawing.length, max_length(model, tokenizer))
    given = data.given_texts(name)
    order = _order(len(given or data.sets[name]), drawing.seed, name)
    if given:
        order = order[: drawing.texts]
        encoded = _encode([given[row] for row in order], tokenizer, length, name)
    else:
        asked = _encode([_answered(data, name, row) for row in order], tokenizer, WHOLE, name)
        fits = [place for place, text in enumerate(asked) if len(text.ids) <= length]
        fitting = fits[: drawing.texts]
        if not fitting:
            raise UsageError(
                f"{name}: no question with its answer fits into {length} tokens; raise the length, "
                "or give texts"
            )
        order, encoded = [order[place] for place in fitting], [asked[place] for place in fitting]
    by_length = sorted(range(len(order)), key=lambda place: -len(encoded[place].ids))
    size = drawing.batch_size
    groups = [by_length[at : at + size] for at in range(0, len(order), size)]
    return [
        collate(
            [encoded[place] for place in group],
            [(name, order[place]) for place in group],
            pad_token_id=0,  # no real token attends to it, and it is not counted
            device=model.device,
        )
        for group in groups
    ]


def _order(count: int, seed: int, name: str) -> list[int]:
    return torch.randperm(count, generator=generator(seed, "passages", name)).tolist()


def _answered(data: AttackData, name: str, row: int) -> QuestionAnswer:
    question, score = data.sets[name][row], data.settings.score
    answer = continuations(question, score)[question.answer]
    return QuestionAnswer(question.stem, answer, asked=ask(question, score))


def _encode(
    texts: Sequence[str | QuestionAnswer],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    name: str,
) -> list[Encoded]:
    try:
        return encode(texts, tokenizer, length)
    except UsageError as error:
        raise UsageError(f"{name} texts: {error}") from error
