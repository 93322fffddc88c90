"""From topics to batches and numbers: everything settled before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from defuse.batches import TextBatch, collate
from defuse.engine import Objective, SharedPrefixStep, StepBatch
from defuse.measure import HiddenStatistics, hidden_statistics
from defuse.methods import RepresentationMethod, Steering
from defuse.methods.base import draw_direction
from defuse.scales import multiple, resolve
from defuse.schedule import generator, rows
from defuse.texts import Encoded, QuestionAnswer, Text, encode
from defuse.triggers import mine_triggers, mix_triggers
from defuse.unlearning import Topic, Training

MEASURED_TEXTS = 64


@dataclass(frozen=True)
class Corpus:
    """One encoded body of texts; `name` stands in every draw made for it."""

    name: str
    texts: Sequence[Encoded]


@dataclass(frozen=True)
class PreparedTopic:
    objective: Objective
    forget: Corpus
    retain: Corpus
    refusals: Corpus | None


@dataclass(frozen=True)
class Prepared:
    """All topics, and how their texts are put into batches."""

    topics: Sequence[PreparedTopic]
    training: Training
    collate: "Collate"

    @property
    def texts_come_again(self) -> bool:
        """Whether any text is used in more than one step."""
        turns = -(-self.training.steps // len(self.topics))
        fewest = min(len(c.texts) for t in self.topics for c in (t.forget, t.retain))
        return turns * self.training.batch_size > fewest

    def batch(self, step: int) -> tuple[Objective, StepBatch]:
        """The topic whose turn it is and its texts: topics alternate, as in the paper's code."""
        topic, turn = self.topics[step % len(self.topics)], step // len(self.topics)
        chosen = self._rows(topic.forget, turn)
        forget = self.collate(topic.forget, chosen)
        retain = self.collate(topic.retain, self._rows(topic.retain, turn))
        refusal = None if topic.refusals is None else self.collate(topic.refusals, chosen)
        return topic.objective, StepBatch(forget, retain, refusal)

    def _rows(self, corpus: Corpus, turn: int) -> Sequence[int]:
        how = self.training
        return rows(
            turn,
            len(corpus.texts),
            how.batch_size,
            seed=how.seed,
            shuffle=how.shuffle,
            purpose=corpus.name,
        )


@dataclass(frozen=True)
class Collate:
    pad_token_id: int
    mask_padding: bool
    skip_first_token: bool
    device: torch.device

    def __call__(self, corpus: Corpus, chosen: Sequence[int]) -> TextBatch:
        return collate(
            [corpus.texts[row] for row in chosen],
            [(corpus.name, row) for row in chosen],
            pad_token_id=self.pad_token_id,
            mask_padding=self.mask_padding,
            skip_first_token=self.skip_first_token,
            device=self.device,
        )


def prepare(
    step: SharedPrefixStep,
    tokenizer: PreTrainedTokenizerBase,
    topics: Sequence[Topic],
    training: Training,
) -> Prepared:
    """Encode the texts, draw the directions, and measure what is given in multiples."""
    pad = tokenizer.pad_token_id
    batches = Collate(
        pad_token_id=pad if isinstance(pad, int) else 0,  # whatever stands there is masked
        mask_padding=step.unlearning.mask_padding,
        skip_first_token=step.unlearning.skip_first_token,
        device=step.decoder.device,
    )
    prepared = [_prepare_topic(step, tokenizer, topic, training, batches) for topic in topics]
    return Prepared(prepared, training, batches)


def _prepare_topic(
    step: SharedPrefixStep,
    tokenizer: PreTrainedTokenizerBase,
    topic: Topic,
    training: Training,
    batches: Collate,
) -> PreparedTopic:
    def corpus(kind: str, texts: Sequence[Text], length: int, *, packed: bool = False) -> Corpus:
        return Corpus(f"{topic.name}/{kind}", encode(texts, tokenizer, length, packed=packed))

    forget = corpus("forget", topic.forget, topic.forget_length, packed=topic.packed)
    kept = _with_triggers(topic, training.seed)
    retain = corpus("retain", kept, topic.retain_length, packed=topic.packed)
    refusals = None
    if wanted := getattr(step.unlearning.method, "refusals", ()):
        # A packed row holds parts of several texts, so refusals then stand for rows.
        asked = [""] * len(forget.texts) if topic.packed else topic.forget
        chosen = refusals_for(asked, wanted, training.seed, topic.name)
        refusals = corpus("refusal", chosen, topic.forget_length)
    objective = _objective(step, topic, training, batches, forget, retain)
    return PreparedTopic(objective, forget, retain, refusals)


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
    step: SharedPrefixStep,
    topic: Topic,
    training: Training,
    batches: Collate,
    forget: Corpus,
    retain: Corpus,
) -> Objective:
    unlearning, method, steering = step.unlearning, step.unlearning.method, None
    assert topic.weight is not None  # noqa: S101 (defaults.with_defaults)
    if isinstance(method, RepresentationMethod):
        rng = generator(training.seed, "steering", topic.name)
        direction = draw_direction(method.vector, step.decoder.hidden_size, rng)
        strength, field = getattr(topic, method.strength_field), method.strength_field
        in_norms = method.strength_field == "coefficient" and multiple(strength, field) is not None
        norm = _measure(step, forget, batches).mean_norm if in_norms else 1.0
        first = Corpus(forget.name, forget.texts[: training.batch_size])
        steering = Steering(
            direction.to(step.decoder.device),
            resolve(strength, norm, field),
            _measure(step, first, batches).mean_norm,
        )
    noise, scaled = unlearning.noise, unlearning.loss_scale == "hidden_variance"
    relative = noise is not None and isinstance(noise.std, str)
    spread = _measure(step, retain, batches) if scaled or relative else HiddenStatistics(1.0, 1.0)
    return Objective(
        topic.name,
        steering,
        topic.weight,
        noise.resolve_std(spread.std) if noise is not None else 0.0,
        spread.variance if scaled else 1.0,
    )


def _measure(step: SharedPrefixStep, corpus: Corpus, batches: Collate) -> HiddenStatistics:
    """Over the first `MEASURED_TEXTS` texts' counted tokens, on the reference at layer l."""
    chosen = range(min(MEASURED_TEXTS, len(corpus.texts)))
    singles = (batches(corpus, [row]) for row in chosen)
    return hidden_statistics((step.reference_hidden(b), b.counted) for b in singles)
