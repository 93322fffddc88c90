"""The batches of a run: which texts each step takes, padded and on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from defuse.data.collate import TextBatch, collate
from defuse.unlearning.config import Training, Unlearning
from defuse.unlearning.tokenized import Corpus, EncodedTopic, batches_per_topic
from defuse.utils.distributed import ALONE, Processes


@dataclass(frozen=True)
class StepBatch:
    """The texts of one step; `refusal` goes with methods that prefer refusals (DPO)."""

    forget: TextBatch
    retain: TextBatch
    refusal: TextBatch | None = None


@dataclass(frozen=True)
class Collate:
    """Pads rows of a corpus into a batch."""

    pad_token_id: int
    mask_padding: bool
    skip_first_token: bool
    device: torch.device

    @classmethod
    def of(
        cls, unlearning: Unlearning, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> "Collate":
        """The padding that `unlearning` asks for."""
        pad = tokenizer.pad_token_id
        # The token on masked padding does not matter, and an added one may have no embedding.
        counts = not unlearning.mask_padding
        return cls(
            pad_token_id=pad if counts and isinstance(pad, int) else 0,
            mask_padding=unlearning.mask_padding,
            skip_first_token=unlearning.skip_first_token,
            device=device,
        )

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


@dataclass(frozen=True)
class StepBatches:
    """The texts of each step: topics alternate, as in the authors' code."""

    topics: Sequence[EncodedTopic]
    training: Training
    collate: Collate
    processes: Processes = ALONE

    @property
    def repeat_texts(self) -> bool:
        """Whether any text is used in more than one step."""
        fewest = min(corpus.count for t in self.topics for corpus in (t.forget, t.retain))
        batches = batches_per_topic(self.training, len(self.topics))
        return batches * self.training.batch_size > fewest

    def topic_of(self, step: int) -> int:
        """The place in `topics` of the topic that a step unlearns."""
        return step % len(self.topics)

    def batch(self, step: int) -> StepBatch:
        """This process's part of a step's texts."""
        topic, number = self.topics[self.topic_of(step)], step // len(self.topics)
        part = partial(self.collate, processes=self.processes)
        chosen = topic.forget.rows(number, self.training)
        forget = part(topic.forget, chosen)
        retain = part(topic.retain, topic.retain.rows(number, self.training))
        refusal = None if topic.refusals is None else part(topic.refusals, chosen)
        return StepBatch(forget, retain, refusal)
