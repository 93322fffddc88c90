"""Token ids of a context and its continuation, as in lm-evaluation-harness 0.4.13.

Source: `TemplateLM._encode_pair` and `loglikelihood` in lm_eval/api/model.py, `HFLM.tok_encode` in
lm_eval/models/huggingface.py.
"""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from defuse.evaluate.answers import Settings
from defuse.evaluate.token_tree import TokenPair
from defuse.questions import Question, ask, continuations, few_shot_part
from defuse.utils.errors import UsageError


def encode_questions(
    questions: Sequence[Question], settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> list[list[TokenPair]]:
    """Encode each question, as the evaluation asks it, with each of its answers."""
    front = few_shot_part(settings.subject, settings.few_shot, settings.score)
    pairs = [
        (front + ask(question, settings.score), answer)
        for question in questions
        for answer in continuations(question, settings.score)
    ]
    encoded = iter(encode_pairs(pairs, tokenizer))
    return [[next(encoded) for _ in question.choices] for question in questions]


def encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[TokenPair]:
    """Encode pairs of texts, (context, continuation).

    Both are encoded together and divided where the context alone ends. Spaces at the end of a
    context belong to the continuation. An empty context becomes the tokenizer's BOS (or EOS).
    Raises UsageError for a continuation or a context without a token.
    """
    moved = [_move_spaces(*pair) for pair in pairs]
    contexts = _encode({context for context, _ in moved if context}, tokenizer)
    wholes = _encode({context + text for context, text in moved if context}, tokenizer)
    alone = _encode({text for context, text in moved if not context}, tokenizer, special=False)
    encoded = []
    for context, text in moved:
        if context:
            ids = contexts[context]
            pair = TokenPair(ids, wholes[context + text][len(ids) :])
        else:
            pair = _without_context(alone[text], tokenizer)
        if not pair.continuation or not pair.context:
            raise UsageError(
                f"questions: {text!r} has no token of its own after {context[-40:]!r} with this "
                "tokenizer; change the choice or the prompt"
            )
        encoded.append(pair)
    return encoded


def prefix_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token for an empty context: BOS, else EOS."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    token = eos if bos is None else bos
    return token if isinstance(token, int) else None


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Encode one text with the tokenizer's own special tokens, but never with two BOS."""
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
    # A text that begins with BOS gets no second one.
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
