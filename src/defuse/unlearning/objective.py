"""From encoded topics to objectives and batches: everything settled before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from defuse.data.collate import TextBatch, collate
from defuse.methods import RepresentationMethod, Steering
from defuse.methods.base import draw_direction
from defuse.unlearning.config import Topic, Training
from defuse.unlearning.hidden_statistics import HiddenStatistics, hidden_statistics
from defuse.unlearning.step import Objective, SharedPrefixStep, StepBatch
from defuse.unlearning.tokenized import (
    MEASURED_TEXTS,
    Corpus,
    EncodedTopic,
    encode_topics,
    turns_of,
)
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.random import generator
from defuse.utils.scales import multiple, resolve


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
        return turns_of(self.training, len(self.topics)) * self.training.batch_size > fewest

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
