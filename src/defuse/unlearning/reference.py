"""The reference model: the model before unlearning, frozen, with its results cached per text.

Blocks below the first trained one are the same in the reference and the updated model. They run
once for both, without gradients. The reference is the caller's own model; the updated model is the
same one with a few tensors swapped in, so there is no second copy.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from defuse.data.collate import TextBatch
from defuse.losses.sequences import SequenceLogProbs
from defuse.losses.tokens import next_token_log_probs
from defuse.models.decoder import BlockInputs, Decoder
from defuse.models.lm_head import tokenwise
from defuse.unlearning.activation_cache import BucketCache


@dataclass(frozen=True)
class PartialForward:
    """A forward pass up to the first trained block; `hidden` (batch, time, hidden) enters it."""

    batch: TextBatch
    inputs: BlockInputs
    hidden: Tensor


@dataclass(frozen=True)
class ReferenceModel:
    """Frozen forward passes of `decoder`'s model, all without gradients.

    `first_trained`: the first block that differs in the updated model. `hidden_cache` holds hidden
    states, `log_prob_cache` the log-probabilities of texts.
    """

    decoder: Decoder
    first_trained: int
    hidden_cache: BucketCache = field(default_factory=BucketCache)
    log_prob_cache: BucketCache = field(default_factory=BucketCache)

    @torch.no_grad()
    def start(self, batch: TextBatch) -> PartialForward:
        """Run the blocks that reference and updated model share."""
        embedded, inputs = self.decoder.embed(batch.input_ids, batch.attention_mask, batch.lengths)
        if self.first_trained > 0:
            shared = self._from_the_bottom(self.first_trained)
            embedded = self.hidden_cache.hidden(self.first_trained, batch, shared)
        return PartialForward(batch, inputs, embedded)

    def hidden(self, forward: PartialForward, stop: int) -> Tensor:
        """The reference's hidden states before block `stop`, (batch, time, hidden)."""
        if stop == self.first_trained:
            return forward.hidden
        compute = self._from_the_bottom(stop)
        if stop > self.first_trained:
            compute = self._from_the_first_trained(forward, stop)
        return self.hidden_cache.hidden(stop, forward.batch, compute)

    @torch.no_grad()
    def run_on(
        self, hidden: Tensor, forward: PartialForward, start: int, stop: int | None = None
    ) -> Tensor:
        """Run blocks from `start` (to the last) on `hidden`, such as hidden states with noise."""
        stop = self.decoder.num_layers if stop is None else stop
        return self.decoder.run(hidden, forward.inputs, start, stop)

    def log_probs(self, forward: PartialForward) -> SequenceLogProbs:
        """The reference's log-probabilities of the batch's texts."""

        @torch.no_grad()
        def compute(batch: TextBatch) -> list[Tensor]:
            own = forward if batch is forward.batch else self.start(batch)
            hidden = self.run_on(own.hidden, own, self.first_trained)
            found = sequence_log_probs(self.decoder, hidden, batch)
            return list(torch.stack([found.total, found.count], dim=1))

        items = forward.batch.items
        cached = self.log_prob_cache.rows("log-probabilities", items, compute)
        rows = torch.stack(compute(forward.batch) if cached is None else cached)
        return SequenceLogProbs(rows[:, 0], rows[:, 1])

    def _from_the_bottom(self, stop: int) -> Callable[[TextBatch], Tensor]:
        """Run blocks 0..stop-1 on a batch."""

        @torch.no_grad()
        def run(batch: TextBatch) -> Tensor:
            embedded, inputs = self.decoder.embed(
                batch.input_ids, batch.attention_mask, batch.lengths
            )
            return self.decoder.run(embedded, inputs, 0, stop)

        return run

    def _from_the_first_trained(
        self, forward: PartialForward, stop: int
    ) -> Callable[[TextBatch], Tensor]:
        """Run blocks up to `stop`-1 on the batch of `forward`, or on another one."""

        @torch.no_grad()
        def run(batch: TextBatch) -> Tensor:
            own = forward if batch is forward.batch else self.start(batch)
            return self.decoder.run(own.hidden, own.inputs, self.first_trained, stop)

        return run


def sequence_log_probs(decoder: Decoder, hidden: Tensor, batch: TextBatch) -> SequenceLogProbs:
    """The log-probability of each text, given the last block's output (batch, time, hidden)."""

    def score(rows: Tensor, where: slice) -> Tensor:
        return next_token_log_probs(decoder.logits(rows), batch.labels[where])

    rows = hidden.flatten(0, 1)[batch.predicted_at]
    values = tokenwise(score, rows, decoder.vocab_size)
    # A text's sum is in the hundreds, and ratios are differences of two: sum in float64.
    values = values if values.device.type == "mps" else values.double()
    empty = values.new_zeros(len(batch.items))
    return SequenceLogProbs(
        empty.index_add(0, batch.sequence, values),
        empty.index_add(0, batch.sequence, torch.ones_like(values)),
    )
