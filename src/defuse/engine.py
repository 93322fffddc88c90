"""The unlearning step, doing only the work that matters.

Blocks below the first trained one are frozen and equal in the updated and the reference model: they
run once, without gradient, and their output may be kept for when a text comes again. The reference
is the caller's own model; the updated model is the same with a few tensors swapped in
(`torch.func.functional_call`), so there is no second copy. Objectives on hidden states stop at the
steering layer. Forget and retain losses are differentiated one after the other, so that only one
of the two graphs is ever in memory.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.batches import Item, TextBatch
from defuse.chunks import tokenwise
from defuse.decoder import BlockInputs, Decoder
from defuse.losses import SequenceLogProbs, hidden_mse, next_token_log_probs
from defuse.methods import (
    HiddenMSE,
    LogitRetain,
    PreferenceMethod,
    RepresentationMethod,
    Steering,
)
from defuse.noise import add_noise
from defuse.unlearning import Unlearning


@dataclass(frozen=True)
class Objective:
    """A topic's numbers, all resolved: what `Topic` says in multiples stands here outright.

    `hidden_scale` divides hidden-state losses (1, or the hidden variance per unit).
    """

    name: str
    steering: Steering | None
    weight: float
    noise_std: float = 0.0
    hidden_scale: float = 1.0


@dataclass(frozen=True)
class StepBatch:
    """The texts of one step; `refusal` goes with methods that prefer refusals (DPO)."""

    forget: TextBatch
    retain: TextBatch
    refusal: TextBatch | None = None


@dataclass(frozen=True)
class StepLosses:
    """Detached scalars; the step minimises forget + weight · retain."""

    forget: Tensor
    retain: Tensor


class FrozenStore:
    """Per-text results of the frozen model, kept up to a number of bytes for the next round."""

    def __init__(self, budget_bytes: int = 0) -> None:
        self.free = budget_bytes
        self._rows: dict[tuple[Hashable, Item], Tensor] = {}

    def fetch(self, kind: Hashable, batch: TextBatch, compute: Callable[[], Tensor]) -> Tensor:
        """Hidden states (batch, time, hidden): kept ones, zero on padding, or `compute()`."""
        if all((kind, item) in self._rows for item in batch.items):
            rows = [self._rows[kind, item] for item in batch.items]
            return self._pad(rows, batch)
        hidden = compute()
        for item, span, row in zip(batch.items, batch.spans, hidden, strict=True):
            size = row[span].numel() * row.element_size()
            if size <= self.free and (kind, item) not in self._rows:
                self._rows[kind, item] = row[span].clone()
                self.free -= size
        return hidden

    @staticmethod
    def _pad(rows: list[Tensor], batch: TextBatch) -> Tensor:
        padded = rows[0].new_zeros(*batch.input_ids.shape, rows[0].shape[-1])
        for row, span, kept in zip(padded, batch.spans, rows, strict=True):
            row[span] = kept
        return padded


@dataclass(frozen=True)
class _Started:
    """A batch that has run through the frozen blocks below the first trained one."""

    batch: TextBatch
    embedded: Tensor
    inputs: BlockInputs
    start: Tensor


class SharedPrefixStep:
    """Losses and gradients of one step. `weights` are the trained tensors by their full names.

    The model's parameters must not require gradients (`frozen_model`), and stay as they are.
    """

    def __init__(
        self,
        decoder: Decoder,
        unlearning: Unlearning,
        weights: Mapping[str, Tensor],
        *,
        seed: int = 0,
        store: FrozenStore | None = None,
    ) -> None:
        self.decoder = decoder
        self.unlearning = unlearning
        self.weights = weights
        self.seed = seed
        self.store = store or FrozenStore()
        self.top = decoder.num_layers
        self.at_layer = unlearning.layer + 1  # hidden states "at layer l" leave block l
        self.first = unlearning.layers(self.top)[0]
        self._log_probs: dict[Item, tuple[Tensor, Tensor]] = {}

    def backward(self, objective: Objective, batch: StepBatch, step: int) -> StepLosses:
        """Add the gradients of forget + weight · retain to `weights`."""
        forget = self.forget_loss(objective, batch)
        forget.backward()
        retain = self.retain_loss(objective, batch.retain, step)
        (objective.weight * retain).backward()
        return StepLosses(forget.detach(), retain.detach())

    def forget_loss(self, objective: Objective, batch: StepBatch) -> Tensor:
        """The method's loss on the forget texts: a scalar with its graph."""
        method = self.unlearning.method
        if isinstance(method, RepresentationMethod):
            assert objective.steering is not None  # noqa: S101 (train.prepare)
            started = self._start(batch.forget)
            hidden = self._updated(started, self.at_layer)
            reference = self.frozen(started, self.at_layer) if method.needs_reference else None
            target = method.target(objective.steering, reference, batch.forget.counted)
            return hidden_mse(hidden, target, batch.forget.counted) / objective.hidden_scale
        return self._preference_loss(method, batch)

    def retain_loss(self, objective: Objective, batch: TextBatch, step: int) -> Tensor:
        """The retain loss against the reference, noised where RNA is on: a scalar with its graph.

        The noise joins the reference's hidden states at layer l (paper, section 4). HiddenMSE
        compares there; losses on logits let the reference continue from there to its logits.
        """
        retain, started = self.unlearning.retain, self._start(batch)
        if isinstance(retain, HiddenMSE):
            target = self._noised(started, objective.noise_std, step)
            hidden = self._updated(started, self.at_layer)
            return hidden_mse(hidden, target, batch.counted) / objective.hidden_scale
        if self.unlearning.noise is None:
            reference = self.frozen(started, self.top)
        else:
            noised = self._noised(started, objective.noise_std, step).to(started.start.dtype)
            with torch.no_grad():
                reference = self.decoder.run(noised, started.inputs, self.at_layer, self.top)
        return self._logit_loss(retain, self._updated(started, self.top), reference, batch)

    def reference_hidden(self, batch: TextBatch) -> Tensor:
        """h0 at layer l, (batch, time, hidden), for measuring norms and variances."""
        return self.frozen(self._start(batch), self.at_layer)

    def frozen(self, started: _Started, stop: int) -> Tensor:
        """The reference model's hidden states before block `stop`, without gradient."""
        if stop == self.first:
            return started.start
        beyond = stop > self.first
        hidden, begin = (started.start, self.first) if beyond else (started.embedded, 0)
        with torch.no_grad():
            return self.store.fetch(
                stop,
                started.batch,
                lambda: self.decoder.run(hidden, started.inputs, begin, stop),
            )

    def _start(self, batch: TextBatch) -> _Started:
        with torch.no_grad():
            embedded, inputs = self.decoder.embed(batch.input_ids, batch.attention_mask)
            if self.first == 0:
                return _Started(batch, embedded, inputs, embedded)
            start = self.store.fetch(
                self.first, batch, lambda: self.decoder.run(embedded, inputs, 0, self.first)
            )
        return _Started(batch, embedded, inputs, start)

    def _updated(self, started: _Started, stop: int) -> Tensor:
        return self.decoder.run(started.start, started.inputs, self.first, stop, self.weights)

    def _noised(self, started: _Started, std: float, step: int) -> Tensor:
        hidden, batch = self.frozen(started, self.at_layer), started.batch
        if self.unlearning.noise is None:
            return hidden
        spans = batch.spans
        if not self.unlearning.mask_padding:
            spans = [slice(None)] * len(batch.items)  # padding counts, so it is noised
        return add_noise(hidden, std, spans, self.seed, step, batch.items)

    def _logit_loss(
        self, retain: LogitRetain, hidden: Tensor, reference: Tensor, batch: TextBatch
    ) -> Tensor:
        updated = hidden.flatten(0, 1)[batch.counted_at]
        fixed = reference.flatten(0, 1)[batch.counted_at]

        def score(rows: Tensor, where: slice) -> Tensor:
            with torch.no_grad():
                target = self.decoder.logits(fixed[where])
            return retain.per_token(self.decoder.logits(rows), target)

        return tokenwise(score, updated, self.decoder.vocab_size).mean()

    def _preference_loss(self, method: PreferenceMethod, batch: StepBatch) -> Tensor:
        forget, refusal = self._start(batch.forget), None
        reference = self._reference_log_probs(forget) if method.needs_reference else None
        refusal_reference = None
        updated = self._sequence_log_probs(self._updated(forget, self.top), batch.forget)
        if batch.refusal is not None:
            started = self._start(batch.refusal)
            refusal_reference = self._reference_log_probs(started)
            refusal = self._sequence_log_probs(self._updated(started, self.top), batch.refusal)
        return method.loss(updated, reference, refusal, refusal_reference)

    def _sequence_log_probs(self, hidden: Tensor, batch: TextBatch) -> SequenceLogProbs:
        def score(rows: Tensor, where: slice) -> Tensor:
            return next_token_log_probs(self.decoder.logits(rows), batch.labels[where])

        rows = hidden.flatten(0, 1)[batch.predicted_at]
        values = tokenwise(score, rows, self.decoder.vocab_size)
        # A text's sum is in the hundreds, and ratios are differences of two: sum in float64.
        values = values if values.device.type == "mps" else values.double()
        empty = values.new_zeros(len(batch.items))
        return SequenceLogProbs(
            empty.index_add(0, batch.sequence, values),
            empty.index_add(0, batch.sequence, torch.ones_like(values)),
        )

    def _reference_log_probs(self, started: _Started) -> SequenceLogProbs:
        """The frozen model's log-probabilities of these texts, taken once per text."""
        items = started.batch.items
        if not all(item in self._log_probs for item in items):
            with torch.no_grad():
                hidden = self.decoder.run(started.start, started.inputs, self.first, self.top)
                fresh = self._sequence_log_probs(hidden, started.batch)
            if not self.unlearning.mask_padding:
                return fresh  # padding counts: a text's value depends on the batch it stands in
            rows = zip(fresh.total, fresh.count, strict=True)
            self._log_probs |= dict(zip(items, rows, strict=True))
        totals, counts = zip(*(self._log_probs[item] for item in items), strict=True)
        return SequenceLogProbs(torch.stack(totals), torch.stack(counts))
