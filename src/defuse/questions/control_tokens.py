"""Tokens for perturbations: read from a file, and control tokens drawn to match them.

Any unusual word lowers a model's accuracy a little, before unlearning, too. A forget-token is
therefore compared with a control token that has as many token ids and a similar frequency in a
corpus of neutral text.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from defuse.data.given import given_strings
from defuse.utils.errors import UsageError
from defuse.utils.files import read_utf8
from defuse.utils.random import generator

WORD = re.compile(r"\w+(?:['’-]\w+)*")


def load_tokens(source: str) -> tuple[str, ...]:
    """Read words or phrases from a text file, one a line; in order, without duplicates."""
    lines = read_utf8(Path(source)).splitlines()
    tokens = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not tokens:
        raise UsageError(f"{source}: holds no token; give one token a line")
    return tokens


def draw_controls(
    tokens: Sequence[str], corpus: Iterable[str], tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[str, ...]:
    """Draw a control token for each token from `corpus`: as many words and ids, and as frequent.

    Frequencies are compared in bands, ⌊log₂ count⌋ in `corpus`; a token that does not occur counts
    as if it occurred once. If its band has no candidate, the nearest band is used. No control token
    contains a word of `tokens`, and none is used twice while others are left. Raises UsageError for
    a token without a candidate of its length.
    """
    tokens = given_strings(tokens, "tokens")
    lengths = {len(_words(token)) for token in tokens}
    counts = _phrase_counts(given_strings(corpus, "corpus"), lengths)
    taboo = {word.casefold() for token in tokens for word in _words(token)}
    candidates = sorted(
        phrase for phrase in counts if not taboo & {word.casefold() for word in phrase.split(" ")}
    )
    id_counts = dict(zip(candidates, _id_counts(candidates, tokenizer), strict=True))
    controls: list[str] = []
    for token, id_count in zip(tokens, _id_counts(tokens, tokenizer), strict=True):
        words = len(_words(token))
        alike = [p for p in candidates if id_counts[p] == id_count and p.count(" ") + 1 == words]
        if not alike:
            raise UsageError(
                f"control-corpus: holds nothing of {words} word(s) and {id_count} token id(s), as "
                f"{token!r} has; give a larger corpus, or control tokens"
            )
        own = _band(max(1, counts[" ".join(_words(token))]))
        controls.append(_nearest(token, alike, counts, own, controls, seed))
    return tuple(controls)


def _nearest(
    token: str, alike: list[str], counts: Counter[str], band: int, taken: list[str], seed: int
) -> str:
    fresh = [phrase for phrase in alike if phrase not in taken] or alike
    gap = min(abs(_band(counts[phrase]) - band) for phrase in fresh)
    near = [phrase for phrase in fresh if abs(_band(counts[phrase]) - band) == gap]
    draw = torch.randint(len(near), (), generator=generator(seed, "control", token))
    return near[int(draw)]


def _phrase_counts(corpus: Iterable[str], lengths: Iterable[int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in corpus:
        words = _words(text)
        for length in lengths:
            counts.update(" ".join(words[i : i + length]) for i in range(len(words) - length + 1))
    return counts


def _words(text: str) -> list[str]:
    return WORD.findall(text)


def _id_counts(phrases: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The number of ids of each phrase within a text, that is, after a space."""
    if not phrases:
        return []
    texts = [f" {phrase}" for phrase in phrases]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    ids: list[list[int]] = encoded["input_ids"]  # type: ignore[assignment]
    return [len(each) for each in ids]


def _band(count: int) -> int:
    return count.bit_length() - 1
