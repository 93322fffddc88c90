"""Token ids of texts: the begin token where the tokenizer sets one, and never an end token.

A prompt continues, and what follows a text is the caller's to say. So the tokens that a tokenizer
puts behind a text (`add_eos_token`) are left out, and a begin token is there at most once.
"""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

# Texts per call of the tokenizer, because it holds far more of each than its ids.
SLICE = 1000


def tokenise(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, begin: bool = True
) -> list[list[int]]:
    """The token ids of each text; `begin`: behind what the tokenizer puts in front of a text.

    A text that starts with the begin token gets no second one.
    """
    front = list(front_tokens(tokenizer)) if begin else []
    start = prefix_token(tokenizer)
    mark = None if start is None else str(tokenizer.decode(start))
    ids: list[list[int]] = []
    for some in _slices(texts):
        # A text too long for the model is truncated later: no warning is needed.
        output = tokenizer(
            some, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        for text, own in zip(some, output["input_ids"], strict=True):  # type: ignore[arg-type]
            brings_own = mark is not None and text.startswith(mark)
            ids.append(list(own) if brings_own else [*front, *own])
    return ids


def front_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that the tokenizer puts in front of a text, with one begin token at most."""
    output = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    mask: list[int] = output["special_tokens_mask"]  # type: ignore[assignment]
    ids: list[int] = output["input_ids"]  # type: ignore[assignment]
    front = ids[: mask.index(0)] if 0 in mask else []
    return tuple(
        token
        for place, token in enumerate(front)
        if token != tokenizer.bos_token_id or token not in front[:place]
    )


def prefix_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token for an empty context: BOS, else EOS."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    token = eos if bos is None else bos
    return token if isinstance(token, int) else None


def _slices(texts: Sequence[str]) -> Iterable[list[str]]:
    return (list(texts[start : start + SLICE]) for start in range(0, len(texts), SLICE))
