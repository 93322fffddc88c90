"""Buckets of texts of similar length, for the activation cache."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial

from defuse.data.text import Encoded
from defuse.unlearning.activation_cache import Bucket
from defuse.unlearning.batches import Collate, StepBatches
from defuse.unlearning.tokenized import Corpus


def length_buckets(batches: StepBatches) -> list[Bucket]:
    """All texts of a run in buckets of the batch size.

    Small corpora come first, because their texts repeat most often.
    """
    corpora = {
        corpus.name: corpus
        for topic in batches.topics
        for corpus in (topic.forget, topic.retain, topic.refusals)
        if corpus is not None
    }
    by_size = sorted(corpora.values(), key=_tokens)
    return [
        _bucket(corpus, rows, batches.collate)
        for corpus in by_size
        for rows in _by_length(corpus, batches.training.batch_size)
    ]


def first_tokens(buckets: Iterable[Bucket], tokens: int) -> list[Bucket]:
    """The first buckets, as many as hold at most `tokens` tokens together."""
    chosen = []
    for bucket in buckets:
        tokens -= bucket.tokens
        if tokens < 0:
            break
        chosen.append(bucket)
    return chosen


def _tokens(corpus: Corpus) -> int:
    return sum(len(text.ids) for text in corpus.texts.values())


def _by_length(corpus: Corpus, size: int) -> Iterable[Sequence[int]]:
    rows = sorted(corpus.texts, key=lambda row: (len(corpus.texts[row].ids), row))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _bucket(corpus: Corpus, rows: Sequence[int], collate: Collate) -> Bucket:
    texts = [corpus.texts[row] for row in rows]
    return Bucket(
        key=_digest(texts),
        items=tuple((corpus.name, row) for row in rows),
        batch=partial(collate, corpus, rows),
        tokens=sum(len(text.ids) for text in texts),
    )


def _digest(texts: Sequence[Encoded]) -> str:
    read = [(text.ids, text.answer_start, sorted(text.uncounted)) for text in texts]
    return hashlib.sha256(repr(read).encode()).hexdigest()
