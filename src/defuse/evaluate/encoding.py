"""Texts to token ids, as lm-evaluation-harness 0.4.13 encodes a context and its continuation.

Source: `TemplateLM._encode_pair` and `loglikelihood` in lm_eval/api/model.py, `HFLM.tok_encode` in
lm_eval/models/huggingface.py.
"""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from defuse.evaluate.token_tree import TokenPair
from defuse.utils.errors import UsageError


def encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[TokenPair]:
    """(context, continuation) texts as token ids.

    Context and continuation are encoded together and cut where the context alone ends; spaces that
    end a context count to the continuation. An empty context is the tokenizer's BOS (or EOS).
    Raises UsageError where a continuation has no token, or a context none to stand on.
    """
    moved = [_move_spaces(*pair) for pair in pairs]
    contexts = _encode({context for context, _ in moved if context}, tokenizer)
    wholes = _encode({context + text for context, text in moved if context}, tokenizer)
    alone = _encode({text for context, text in moved if not context}, tokenizer, special=False)
    requests = []
    for context, text in moved:
        if context:
            ids = contexts[context]
            request = TokenPair(ids, wholes[context + text][len(ids) :])
        else:
            request = _without_context(alone[text], tokenizer)
        if not request.continuation or not request.context:
            raise UsageError(
                f"questions: {text!r} has no token of its own behind {context[-40:]!r} with this "
                "tokenizer; change the choice or the prompt"
            )
        requests.append(request)
    return requests


def prefix_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """What stands for an empty context: BOS, else EOS."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    token = eos if bos is None else bos
    return token if isinstance(token, int) else None


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """One text with special tokens as the tokenizer sets them, but BOS never twice."""
    return _encode([text], tokenizer)[text]


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _without_context(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> TokenPair:
    start = prefix_token(tokenizer)
    if start is None or ids[:1] == (start,):
        return TokenPair(ids[:1], ids[1:])
    return TokenPair((start,), ids)


def _encode(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, special: bool = True
) -> dict[str, tuple[int, ...]]:
    start = prefix_token(tokenizer)
    mark = None if start is None else str(tokenizer.decode(start))
    encoded: dict[str, tuple[int, ...]] = {}
    # A text that brings its own BOS gets no second one.
    for brings_own in (False, True):
        some = [t for t in texts if (mark is not None and t.startswith(mark)) == brings_own]
        if some:
            output = tokenizer(
                some,
                add_special_tokens=special and not brings_own,
                return_attention_mask=False,
                verbose=False,
            )
            encoded |= {t: tuple(ids) for t, ids in zip(some, output["input_ids"], strict=True)}  # type: ignore[arg-type]
    return encoded
