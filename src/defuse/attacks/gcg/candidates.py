"""Candidate suffixes: the tokens they may consist of, and a filter for those that survive as text.

A suffix is reported as text, and whoever uses the text encodes it again. So a suffix is only a
candidate if encoding its text, in its place in the prompt, gives the same tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from defuse.attacks.gcg.places import Place, decode, find_place, spell
from defuse.data.token_ids import tokenise
from defuse.models.decoder import Decoder
from defuse.utils.errors import UsageError

NEAR = 12, 3  # characters before and after a suffix: tokens seldom reach further
DRAWS = 32  # tokens tried at each place of a random suffix


def allowed_tokens(
    tokenizer: PreTrainedTokenizerBase, decoder: Decoder, allow_non_ascii: bool
) -> Tensor:
    """Return the ids of the tokens that a suffix may consist of: printable ones, none added later.

    Added tokens are control tokens or reserved ones, which are never trained; rows of the embedding
    without a token are padding.
    """
    count = min(len(tokenizer), decoder.num_embeddings, decoder.vocab_size)
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    texts = decode(tokenizer, [[token] for token in range(count)])
    allowed = [
        token
        for token, text in enumerate(texts)
        if token not in added and _is_allowed(text, allow_non_ascii)
    ]
    return torch.tensor(allowed)


def _is_allowed(text: str, allow_non_ascii: bool) -> bool:
    # A space at the end is lost if the stem is stripped.
    whole = text.rstrip() == text != "" and "\N{REPLACEMENT CHARACTER}" not in text
    return whole and text.isprintable() and (allow_non_ascii or text.isascii())


def sample(
    parent: Sequence[int],
    gradient: Tensor,
    allowed: Tensor,
    *,
    search_width: int,
    topk: int,
    n_replace: int,
    rng: torch.Generator,
) -> Tensor:
    """Draw at most `search_width` suffixes (C, length) that differ from `parent` in `n_replace`
    places.

    Places are random; a new token is one of the `topk` of its place with the largest -`gradient`
    (length, A), whose columns are the `allowed` tokens (A,). Zou et al. 2307.15043, algorithm 1;
    but repeats are dropped, and a token is never replaced by itself.
    """
    ids = torch.tensor(parent)
    own = (allowed == ids[:, None]).to(gradient.device)
    ranked = (-gradient).masked_fill(own, -torch.inf)
    best = allowed[ranked.topk(min(topk, len(allowed) - 1), dim=1).indices.cpu()]
    places = torch.rand(search_width, len(ids), generator=rng).argsort(dim=1)[:, :n_replace]
    ranks = torch.randint(best.shape[1], places.shape, generator=rng)
    candidates = ids.repeat(search_width, 1).scatter(1, places, best[places, ranks])
    return candidates.unique(dim=0)


class Spelling:
    """The text of suffixes, which is the same in all the given places."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, places: Sequence[Place], probes: Sequence[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.places = places
        first = places[0]
        head, tail = first.head[-NEAR[0] :], first.tail[: NEAR[1]]
        self._near = find_place(head, tail, tokenizer, probes) or first

    def texts(self, suffixes: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each suffix in its place."""
        return spell(self.tokenizer, self.places[0].before[-1], suffixes)

    def survivors(self, candidates: Tensor) -> Tensor:
        """Filter `candidates` (C, length) by encoding them with the text near the first place."""
        near, rows = self._near, candidates.tolist()
        texts = [near.head + text + near.tail for text in self.texts(rows)]
        encoded = tokenise(texts, self.tokenizer)
        kept = [
            ids == [*near.before, *row, *near.after] for ids, row in zip(encoded, rows, strict=True)
        ]
        return candidates[torch.tensor(kept)]

    def survives(self, suffix: Sequence[int]) -> bool:
        """Whether the suffix has the same tokens in every place, as an evaluation encodes it."""
        (text,) = self.texts([suffix])
        return all(place.between(text, self.tokenizer) == tuple(suffix) for place in self.places)


def random_suffix(
    spelling: Spelling, allowed: Tensor, length: int, rng: torch.Generator
) -> tuple[int, ...]:
    """Draw a suffix of random tokens that survives as text, token by token."""
    suffix = torch.empty(1, 0, dtype=torch.long)
    for _ in range(length):
        drawn = allowed[torch.randint(len(allowed), (DRAWS, 1), generator=rng)]
        grown = torch.cat([suffix.expand(DRAWS, -1), drawn], dim=1)
        suffix = next(
            (each[None] for each in spelling.survivors(grown) if spelling.survives(each.tolist())),
            suffix,
        )
    if suffix.shape[1] < length:
        raise UsageError("gcg.init: random tokens change when their text is encoded; name a word")
    return tuple(suffix[0].tolist())
