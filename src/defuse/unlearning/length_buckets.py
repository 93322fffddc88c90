"""Batches of texts of equal length, for the activation cache."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial

from defuse.data.text import Encoded
from defuse.unlearning.activation_cache import Bucket
from defuse.unlearning.objective import Collate, Prepared
from defuse.unlearning.tokenized import Corpus


def buckets(prepared: Prepared) -> list[Bucket]:
    """All texts in use, those of about one length together.

    Small corpora, whose texts come again most often, are first.
    """
    corpora = {
        corpus.name: corpus
        for topic in prepared.topics
        for corpus in (topic.texts.forget, topic.texts.retain, topic.texts.refusals)
        if corpus is not None
    }
    by_size = sorted(corpora.values(), key=_tokens)
    return [
        _bucket(corpus, rows, prepared.collate)
        for corpus in by_size
        for rows in _alike(corpus, prepared.training.batch_size)
    ]


def within(found: Iterable[Bucket], tokens: int) -> list[Bucket]:
    """The first buckets that hold no more than `tokens` tokens together."""
    kept = []
    for bucket in found:
        tokens -= bucket.tokens
        if tokens < 0:
            break
        kept.append(bucket)
    return kept


def _tokens(corpus: Corpus) -> int:
    return sum(len(text.ids) for text in corpus.texts.values())


def _alike(corpus: Corpus, size: int) -> Iterable[Sequence[int]]:
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
    seen = [(text.ids, text.answer_start, sorted(text.uncounted)) for text in texts]
    return hashlib.sha256(repr(seen).encode()).hexdigest()
