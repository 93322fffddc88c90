"""Texts with their end-of-text token, and the tokens that fine-tuning learns."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from defuse.data.text import Text, encode


@dataclass(frozen=True)
class Example:
    """`ids`: a text's tokens; the loss counts those from index `start` on."""

    ids: tuple[int, ...]
    start: int


def make_examples(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[Example]:
    """Texts followed by the end-of-text token, truncated to `length` tokens.

    The loss counts the answer of a question-answer pair and the end-of-text token (as in TOFU's
    data_module.py), and all tokens of any other text. Raises UsageError if no token is left.
    """
    eos = tokenizer.eos_token_id
    end = (eos,) if isinstance(eos, int) else ()
    encoded = encode(texts, tokenizer, length)
    return [Example(_ended(text.ids, end)[:length], text.answer_start) for text in encoded]


def _ended(ids: tuple[int, ...], end: tuple[int, ...]) -> tuple[int, ...]:
    return ids if end and ids[-1:] == end else (*ids, *end)
