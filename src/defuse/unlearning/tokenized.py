"""Topics' texts as token ids, as far as the steps use them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from defuse.data.sampling import rows
from defuse.data.text import Encoded, QuestionAnswer, Text, encode
from defuse.data.trigger_mixing import mine_triggers, mix_triggers
from defuse.models.decoder import Decoder
from defuse.unlearning.config import Topic, Training, Unlearning
from defuse.utils.errors import UsageError
from defuse.utils.random import generator

MEASURED_TEXTS = 64


@dataclass(frozen=True)
class Corpus:
    """A corpus of `count` texts; `texts` holds those that will be used, by row.

    `name` is part of the seed of every draw for it.
    """

    name: str
    count: int
    texts: Mapping[int, Encoded]

    def rows(self, number: int, training: Training) -> Sequence[int]:
        """The rows of the corpus's batch `number` (from 0)."""
        how = training
        return rows(
            number,
            self.count,
            how.batch_size,
            seed=how.seed,
            shuffle=how.shuffle,
            purpose=self.name,
        )


@dataclass(frozen=True)
class EncodedTopic:
    """A topic's texts as token ids; `refusals` are for methods that prefer refusals (DPO)."""

    topic: Topic
    forget: Corpus
    retain: Corpus
    refusals: Corpus | None


def encode_topics(
    decoder: Decoder,
    unlearning: Unlearning,
    tokenizer: PreTrainedTokenizerBase,
    topics: Sequence[Topic],
    training: Training,
) -> list[EncodedTopic]:
    """Token ids of the texts that the steps use; needs no weights.

    Raises UsageError for a text that the model cannot read or that leaves nothing to predict.
    """
    batches = batches_per_topic(training, len(topics))
    return [
        _encode_topic(decoder, unlearning, tokenizer, topic, training, batches) for topic in topics
    ]


def texts_digest(topics: Iterable[EncodedTopic]) -> str:
    """A hash of all token ids of `topics`, with their places."""
    digest = hashlib.sha256()
    for topic in topics:
        for corpus in (topic.forget, topic.retain, topic.refusals):
            if corpus is not None:
                digest.update(f"{corpus.name} {corpus.count}".encode())
                for row, text in corpus.texts.items():
                    seen = (row, text.ids, text.answer_start, sorted(text.uncounted))
                    digest.update(repr(seen).encode())
    return digest.hexdigest()


def _encode_topic(
    decoder: Decoder,
    unlearning: Unlearning,
    tokenizer: PreTrainedTokenizerBase,
    topic: Topic,
    training: Training,
    batches: int,
) -> EncodedTopic:
    def corpus(kind: str, texts: Sequence[Text], length: int, rows: Iterable[int]) -> Corpus:
        used = list(rows)
        try:
            found = encode([texts[row] for row in used], tokenizer, length)
            _check_ids(decoder, found)
        except UsageError as error:
            raise UsageError(f"topics.{topic.name}.{kind}: {error}") from error
        return Corpus(f"{topic.name}/{kind}", len(texts), dict(zip(used, found, strict=True)))

    def body(kind: str, texts: Sequence[Text], length: int) -> Corpus:
        whole = Corpus(f"{topic.name}/{kind}", len(texts), {})
        if not topic.packed:
            return corpus(kind, texts, length, _used(whole, training, batches))
        packed = encode(texts, tokenizer, length, packed=True)
        _check_ids(decoder, packed)
        return replace(whole, count=len(packed), texts=dict(enumerate(packed)))

    forget = body("forget", topic.forget, topic.forget_length)
    retain = body("retain", _with_triggers(topic, training.seed), topic.retain_length)
    refusals = None
    if wanted := getattr(unlearning.method, "refusals", ()):
        # A packed row holds parts of several texts, so each row gets a refusal.
        asked = [""] * forget.count if topic.packed else topic.forget
        chosen = refusals_for(asked, wanted, training.seed, topic.name)
        refusals = corpus("refusals", chosen, topic.forget_length, forget.texts)
    return EncodedTopic(topic, forget, retain, refusals)


def batches_per_topic(training: Training, topics: int) -> int:
    """The largest number of batches of any topic."""
    return -(-training.steps // topics)


def _used(corpus: Corpus, training: Training, batches: int) -> list[int]:
    """The rows of a corpus that the steps use, and those that are measured."""
    measured = range(min(MEASURED_TEXTS, corpus.count))
    if batches * training.batch_size >= corpus.count:
        return list(range(corpus.count))
    reached = (row for number in range(batches) for row in corpus.rows(number, training))
    return sorted({*measured, *reached})


def _check_ids(decoder: Decoder, texts: Iterable[Encoded]) -> None:
    size, reads = decoder.num_embeddings, decoder.max_positions
    for text in texts:
        if max(text.ids) >= size:
            raise UsageError(
                f"token id {max(text.ids)} has no embedding, the model has {size}; use the "
                "tokenizer that came with the model"
            )
        if reads is not None and len(text.ids) > reads:
            raise UsageError(
                f"a text of {len(text.ids)} tokens is longer than the {reads} that the model "
                "reads; lower the topic's length"
            )


def _with_triggers(topic: Topic, seed: int) -> Sequence[Text]:
    """The retain texts, some behind sentences with forget-tokens if the topic says so."""
    if topic.mixed_share == 0:
        return topic.retain
    triggers = topic.triggers or mine_triggers(topic.forget, topic.retain)
    return mix_triggers(topic.retain, triggers, topic.mixed_share, seed, topic.name)


def refusals_for(
    texts: Sequence[Text], refusals: Sequence[str], seed: int, topic: str
) -> list[Text]:
    """A refusal for each text, drawn once; for a question-answer pair it replaces the answer."""
    rng = generator(seed, "refusals", topic)
    draws = torch.randint(len(refusals), (len(texts),), generator=rng).tolist()
    chosen: list[str] = [refusals[int(draw)] for draw in draws]
    return [
        QuestionAnswer(text.question, refusal) if isinstance(text, QuestionAnswer) else refusal
        for text, refusal in zip(texts, chosen, strict=True)
    ]
