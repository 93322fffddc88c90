"""Token ids of a context and its continuation, as in lm-evaluation-harness 0.4.13.

Source: `TemplateLM._encode_pair` and `loglikelihood` in lm_eval/api/model.py, `HFLM.tok_encode` in
lm_eval/models/huggingface.py. Unlike there, no token that the tokenizer puts behind a text stands
between a prompt and its answer.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

from transformers import PreTrainedTokenizerBase

from defuse.data.token_ids import prefix_token, tokenise
from defuse.evaluate.answers import Settings
from defuse.evaluate.token_tree import TokenPair
from defuse.questions import Question, ask, continuations, few_shot_part
from defuse.utils.errors import UsageError


def encode_questions(
    questions: Sequence[Question], settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> list[list[TokenPair]]:
    """Encode each question, as the evaluation asks it, with each of its answers."""
    return encode_rows([prompt_pairs([each], settings) for each in questions], tokenizer)


def prompt_pairs(questions: Iterable[Question], settings: Settings) -> list[tuple[str, str]]:
    """Each question as the evaluation asks it, with each of its answers, in order."""
    front = few_shot_part(settings.subject, settings.few_shot, settings.score)
    return [
        (front + ask(question, settings.score), answer)
        for question in questions
        for answer in continuations(question, settings.score)
    ]


def encode_rows(
    rows: Sequence[Sequence[tuple[str, str]]], tokenizer: PreTrainedTokenizerBase
) -> list[list[TokenPair]]:
    """Encode pairs of texts, in rows as `rows` has them."""
    encoded = iter(encode_pairs(list(chain.from_iterable(rows)), tokenizer))
    return [[next(encoded) for _ in row] for row in rows]


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
    alone = _encode({text for context, text in moved if not context}, tokenizer, begin=False)
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


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Encode one text with the begin token that the tokenizer sets, and without an end token."""
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
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, begin: bool = True
) -> dict[str, tuple[int, ...]]:
    listed = list(texts)
    encoded = tokenise(listed, tokenizer, begin=begin)
    return {text: tuple(ids) for text, ids in zip(listed, encoded, strict=True)}
