"""From topics to batches and numbers: everything settled before the first step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from defuse.batches import TextBatch, collate
from defuse.decoder import Decoder
from defuse.engine import Objective, SharedPrefixStep, StepBatch
from defuse.errors import UsageError
from defuse.measure import HiddenStatistics, hidden_statistics
from defuse.methods import RepresentationMethod, Steering
from defuse.methods.base import draw_direction
from defuse.processes import ALONE, Processes
from defuse.scales import multiple, resolve
from defuse.schedule import generator, rows
from defuse.texts import Encoded, QuestionAnswer, Text, encode
from defuse.triggers import mine_triggers, mix_triggers
from defuse.unlearning import Topic, Training, Unlearning

MEASURED_TEXTS = 64


@dataclass(frozen=True)
class Corpus:
    """One body of `count` texts, of which `texts` holds those that will be used, by row.

    `name` stands in every draw made for it.
    """

    name: str
    count: int
    texts: Mapping[int, Encoded]

    def rows(self, turn: int, training: Training) -> Sequence[int]:
        """The rows of the corpus's batch number `turn`."""
        how = training
        return rows(
            turn, self.count, how.batch_size, seed=how.seed, shuffle=how.shuffle, purpose=self.name
        )


@dataclass(frozen=True)
class EncodedTopic:
    """A topic's texts as token ids; `refusals` go with methods that prefer refusals (DPO)."""

    topic: Topic
    forget: Corpus
    retain: Corpus
    refusals: Corpus | None


@dataclass(frozen=True)
class PreparedTopic:
    objective: Objective
    texts: EncodedTopic


@dataclass(frozen=True)
class Prepared:
    """All topics, and how their texts are put into batches."""

    topics: Sequence[PreparedTopic]
    training: Training
    collate: "Collate"
    processes: Processes = ALONE

    @property
    def texts_come_again(self) -> bool:
        """Whether any text is used in more than one step."""
        fewest = min(c.count for t in self.topics for c in (t.texts.forget, t.texts.retain))
        return _turns(self.training, len(self.topics)) * self.training.batch_size > fewest

    def batch(self, step: int) -> tuple[Objective, StepBatch]:
        """The topic whose turn it is and this process's part of its texts.

        Topics alternate, as in the paper's code.
        """
        topic, turn = self.topics[step % len(self.topics)], step // len(self.topics)
        texts, part = topic.texts, partial(self.collate, processes=self.processes)
        chosen = texts.forget.rows(turn, self.training)
        forget = part(texts.forget, chosen)
        retain = part(texts.retain, texts.retain.rows(turn, self.training))
        refusal = None if texts.refusals is None else part(texts.refusals, chosen)
        return topic.objective, StepBatch(forget, retain, refusal)


@dataclass(frozen=True)
class Collate:
    pad_token_id: int
    mask_padding: bool
    skip_first_token: bool
    device: torch.device

    def __call__(
        self, corpus: Corpus, chosen: Sequence[int], processes: Processes = ALONE
    ) -> TextBatch:
        return collate(
            [corpus.texts[row] for row in chosen],
            [(corpus.name, row) for row in chosen],
            pad_token_id=self.pad_token_id,
            mask_padding=self.mask_padding,
            skip_first_token=self.skip_first_token,
            device=self.device,
            processes=processes,
        )


def prepare(
    step: SharedPrefixStep,
    tokenizer: PreTrainedTokenizerBase,
    topics: Sequence[Topic],
    training: Training,
) -> Prepared:
    """Encode the texts, draw the directions, and measure what is given in multiples."""
    unlearning, pad = step.unlearning, tokenizer.pad_token_id
    # What stands on masked padding does not matter, and an added token may have no embedding.
    counts = not unlearning.mask_padding
    batches = Collate(
        pad_token_id=pad if counts and isinstance(pad, int) else 0,
        mask_padding=unlearning.mask_padding,
        skip_first_token=unlearning.skip_first_token,
        device=step.decoder.device,
    )
    encoded = encode_topics(step.decoder, unlearning, tokenizer, topics, training)
    prepared = [PreparedTopic(_objective(step, t, training, batches), t) for t in encoded]
    return Prepared(prepared, training, batches, step.processes)


def encode_topics(
    decoder: Decoder,
    unlearning: Unlearning,
    tokenizer: PreTrainedTokenizerBase,
    topics: Sequence[Topic],
    training: Training,
) -> list[EncodedTopic]:
    """The texts that the steps will reach, as token ids; needs no weights.

    Raises UsageError for a text that the model cannot read or that leaves nothing to predict.
    """
    turns = _turns(training, len(topics))
    return [
        _encode_topic(decoder, unlearning, tokenizer, topic, training, turns) for topic in topics
    ]


def _encode_topic(
    decoder: Decoder,
    unlearning: Unlearning,
    tokenizer: PreTrainedTokenizerBase,
    topic: Topic,
    training: Training,
    turns: int,
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
            return corpus(kind, texts, length, _used(whole, training, turns))
        packed = encode(texts, tokenizer, length, packed=True)
        _check_ids(decoder, packed)
        return replace(whole, count=len(packed), texts=dict(enumerate(packed)))

    forget = body("forget", topic.forget, topic.forget_length)
    retain = body("retain", _with_triggers(topic, training.seed), topic.retain_length)
    refusals = None
    if wanted := getattr(unlearning.method, "refusals", ()):
        # A packed row holds parts of several texts, so refusals then stand for rows.
        asked = [""] * forget.count if topic.packed else topic.forget
        chosen = refusals_for(asked, wanted, training.seed, topic.name)
        refusals = corpus("refusals", chosen, topic.forget_length, forget.texts)
    return EncodedTopic(topic, forget, retain, refusals)


def _turns(training: Training, topics: int) -> int:
    """How many batches each topic has, at the most."""
    return -(-training.steps // topics)


def _used(corpus: Corpus, training: Training, turns: int) -> list[int]:
    """The rows of a corpus that the steps will reach, and those to measure on."""
    measured = range(min(MEASURED_TEXTS, corpus.count))
    if turns * training.batch_size >= corpus.count:
        return list(range(corpus.count))
    reached = (row for turn in range(turns) for row in corpus.rows(turn, training))
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
    """The retain texts, some behind sentences with forget-terms where the topic says so."""
    if topic.mixed_share == 0:
        return topic.retain
    triggers = topic.triggers or mine_triggers(topic.forget, topic.retain)
    return mix_triggers(topic.retain, triggers, topic.mixed_share, seed, topic.name)


def refusals_for(
    texts: Sequence[Text], refusals: Sequence[str], seed: int, topic: str
) -> list[Text]:
    """A refusal, drawn once, for each text: as the answer where the text is a question's."""
    rng = generator(seed, "refusals", topic)
    draws = torch.randint(len(refusals), (len(texts),), generator=rng).tolist()
    chosen: list[str] = [refusals[int(draw)] for draw in draws]
    return [
        QuestionAnswer(text.question, refusal) if isinstance(text, QuestionAnswer) else refusal
        for text, refusal in zip(texts, chosen, strict=True)
    ]


def _objective(
    step: SharedPrefixStep, texts: EncodedTopic, training: Training, batches: Collate
) -> Objective:
    unlearning, topic = step.unlearning, texts.topic
    method, steering = unlearning.method, None
    assert topic.weight is not None  # noqa: S101 (defaults.with_defaults)
    if isinstance(method, RepresentationMethod):
        rng = generator(training.seed, "steering", topic.name)
        direction = draw_direction(method.vector, step.decoder.hidden_size, rng)
        strength, field = getattr(topic, method.strength_field), method.strength_field
        in_norms = method.strength_field == "coefficient" and multiple(strength, field) is not None
        norm = _measure(step, texts.forget, batches).mean_norm if in_norms else 1.0
        first = batches(texts.forget, texts.forget.rows(0, training))
        steering = Steering(
            direction.to(step.decoder.device),
            resolve(strength, norm, field),
            hidden_statistics([(step.reference_hidden(first), first.counted)]).mean_norm,
        )
    noise, scaled = unlearning.noise, unlearning.loss_scale == "hidden_variance"
    relative = noise is not None and isinstance(noise.std, str)
    measured = scaled or relative
    spread = _measure(step, texts.retain, batches) if measured else HiddenStatistics(1.0, 1.0)
    return Objective(
        topic.name,
        steering,
        topic.weight,
        noise.resolve_std(spread.std) if noise is not None else 0.0,
        spread.variance if scaled else 1.0,
    )


def _measure(step: SharedPrefixStep, corpus: Corpus, batches: Collate) -> HiddenStatistics:
    """Over the first `MEASURED_TEXTS` texts' counted tokens, on the reference at layer l."""
    chosen = range(min(MEASURED_TEXTS, corpus.count))
    singles = (batches(corpus, [row]) for row in chosen)
    return hidden_statistics((step.reference_hidden(b), b.counted) for b in singles)
