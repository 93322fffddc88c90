"""The unlearning step, doing only the work that matters.

Blocks below the first trained one are frozen and equal in the updated and the reference model: they
run once, without gradient, and their output may be kept for when a text comes again. The reference
is the caller's own model; the updated model is the same with a few tensors swapped in
(`torch.func.functional_call`), so there is no second copy. Objectives on hidden states stop at the
steering layer. Forget and retain losses are differentiated one after the other, so that only one
of the two graphs is ever in memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.data.collate import TextBatch
from defuse.losses.hidden import hidden_mse
from defuse.losses.sequences import SequenceLogProbs
from defuse.losses.tokens import next_token_log_probs
from defuse.methods import HiddenMSE, LogitRetain, PreferenceMethod, RepresentationMethod, Steering
from defuse.models.decoder import BlockInputs, Decoder
from defuse.models.lm_head import tokenwise
from defuse.unlearning.activation_cache import FrozenStore
from defuse.unlearning.config import Unlearning
from defuse.unlearning.noise import add_noise
from defuse.utils.distributed import ALONE, Processes


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


@dataclass(frozen=True)
class _Started:
    """A batch that has run through the frozen blocks below the first trained one."""

    batch: TextBatch
    inputs: BlockInputs
    start: Tensor


class SharedPrefixStep:
    """Losses and gradients of one step. `weights` are the trained tensors by their full names.

    The model's parameters must not require gradients (`frozen_model`), and stay as they are.
    `hidden_store` keeps hidden states of the frozen model, `value_store` its log-probabilities.
    Each of several `processes` gets its own texts of a step; losses and gradients are the whole
    step's on all of them.
    """

    def __init__(
        self,
        decoder: Decoder,
        unlearning: Unlearning,
        weights: Mapping[str, Tensor],
        *,
        seed: int = 0,
        hidden_store: FrozenStore | None = None,
        value_store: FrozenStore | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.decoder = decoder
        self.unlearning = unlearning
        self.weights = weights
        self.seed = seed
        self.hidden_store = hidden_store or FrozenStore()
        self.value_store = value_store or FrozenStore()
        self.processes = processes
        self.top = decoder.num_layers
        self.at_layer = unlearning.layer + 1  # hidden states "at layer l" leave block l
        self.first = unlearning.layers(self.top)[0]

    def backward(self, objective: Objective, batch: StepBatch, step: int) -> StepLosses:
        """Add the gradients of forget + weight · retain to `weights`."""
        forget = self.forget_loss(objective, batch)
        _backward(forget)
        retain = self.retain_loss(objective, batch.retain, step)
        _backward(objective.weight * retain)
        return self._add_up(StepLosses(forget.detach(), retain.detach()))

    def _add_up(self, losses: StepLosses) -> StepLosses:
        """Gradients and losses over all processes, of which some may have had no text."""
        if self.processes.count == 1:
            return losses
        for tensor in self.weights.values():
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        gradients = [tensor.grad for tensor in self.weights.values() if tensor.grad is not None]
        self.processes.add_up(gradients)
        both = torch.stack([losses.forget.double(), losses.retain.double()])
        self.processes.add_up([both])
        return StepLosses(*both)

    def forget_loss(self, objective: Objective, batch: StepBatch) -> Tensor:
        """The method's loss on the forget texts: a scalar with its graph."""
        method = self.unlearning.method
        if not isinstance(method, RepresentationMethod):
            return self._preference_loss(method, batch)
        assert objective.steering is not None  # noqa: S101 (train.prepare)
        if not batch.forget.items:
            return self._nothing()
        started = self._start(batch.forget)
        hidden = self._updated(started, self.at_layer)
        reference = self.frozen(started, self.at_layer) if method.needs_reference else None
        target = method.target(objective.steering, reference, batch.forget.counted)
        loss = hidden_mse(hidden, target, batch.forget.counted) / objective.hidden_scale
        return batch.forget.share * loss

    def retain_loss(self, objective: Objective, batch: TextBatch, step: int) -> Tensor:
        """The retain loss against the reference, noised where RNA is on: a scalar with its graph.

        The noise joins the reference's hidden states at layer l (paper, section 4). HiddenMSE
        compares there; losses on logits let the reference continue from there to its logits.
        """
        if not batch.items:
            return self._nothing()
        retain, started = self.unlearning.retain, self._start(batch)
        if isinstance(retain, HiddenMSE):
            target = self._noised(started, objective.noise_std, step)
            hidden = self._updated(started, self.at_layer)
            loss = hidden_mse(hidden, target, batch.counted) / objective.hidden_scale
            return batch.share * loss
        if self.unlearning.noise is None:
            reference = self.frozen(started, self.top)
        else:
            noised = self._noised(started, objective.noise_std, step).to(started.start.dtype)
            with torch.no_grad():
                reference = self.decoder.run(noised, started.inputs, self.at_layer, self.top)
        loss = self._logit_loss(retain, self._updated(started, self.top), reference, batch)
        return batch.share * loss

    def reference_hidden(self, batch: TextBatch) -> Tensor:
        """h0 at layer l, (batch, time, hidden), for measuring norms and variances."""
        return self.frozen(self._start(batch), self.at_layer)

    def frozen(self, started: _Started, stop: int) -> Tensor:
        """The reference model's hidden states before block `stop`, without gradient."""
        if stop == self.first:
            return started.start
        if stop > self.first:
            return self.hidden_store.hidden(stop, started.batch, self._reference(stop, started))
        return self.hidden_store.hidden(stop, started.batch, self._below(stop))

    def _start(self, batch: TextBatch) -> _Started:
        with torch.no_grad():
            embedded, inputs = self.decoder.embed(batch.input_ids, batch.attention_mask)
        if self.first == 0:
            return _Started(batch, inputs, embedded)
        start = self.hidden_store.hidden(self.first, batch, self._below(self.first))
        return _Started(batch, inputs, start)

    def _below(self, stop: int) -> Callable[[TextBatch], Tensor]:
        """Blocks 0..stop-1 on a batch, all of them frozen."""

        @torch.no_grad()
        def run(batch: TextBatch) -> Tensor:
            embedded, inputs = self.decoder.embed(batch.input_ids, batch.attention_mask)
            return self.decoder.run(embedded, inputs, 0, stop)

        return run

    def _reference(self, stop: int, started: _Started) -> Callable[[TextBatch], Tensor]:
        """The reference's blocks up to `stop`, on the batch that has `started` or another."""

        @torch.no_grad()
        def run(batch: TextBatch) -> Tensor:
            at = started if batch is started.batch else self._start(batch)
            return self.decoder.run(at.start, at.inputs, self.first, stop)

        return run

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
        updated, reference = self._log_probs(batch.forget, reference=method.needs_reference)
        refusal = refusal_reference = None
        if batch.refusal is not None:
            refusal, refusal_reference = self._log_probs(batch.refusal, reference=True)
        loss = method.loss(updated, reference, refusal, refusal_reference)
        # Every process has the whole loss with the gradient of its own texts; it counts once.
        return loss if self.processes.is_first else loss - loss.detach()

    def _log_probs(
        self, batch: TextBatch, *, reference: bool
    ) -> tuple[SequenceLogProbs, SequenceLogProbs | None]:
        """Both models' log-probabilities of all the step's texts; gradients reach one's own."""
        if not batch.items:
            nothing = SequenceLogProbs(
                *torch.zeros(2, 0, dtype=torch.float64, device=self.decoder.device)
            )
            return self._of_all(nothing, batch), self._of_all(nothing, batch) if reference else None
        started = self._start(batch)
        fixed = self._of_all(self._reference_log_probs(started), batch) if reference else None
        updated = self._sequence_log_probs(self._updated(started, self.top), batch)
        return self._of_all(updated, batch), fixed

    def _of_all(self, own: SequenceLogProbs, batch: TextBatch) -> SequenceLogProbs:
        """One's own texts' values in their places among those of all processes."""
        if self.processes.count == 1:
            return own
        empty = own.total.new_zeros(batch.whole)
        total, count = (empty.index_copy(0, batch.places, each) for each in (own.total, own.count))
        everyone = [total.detach().clone(), count.clone()]
        self.processes.add_up(everyone)
        return SequenceLogProbs(everyone[0] + (total - total.detach()), everyone[1])

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

        @torch.no_grad()
        def compute(batch: TextBatch) -> list[Tensor]:
            at = started if batch is started.batch else self._start(batch)
            hidden = self.decoder.run(at.start, at.inputs, self.first, self.top)
            found = self._sequence_log_probs(hidden, batch)
            return list(torch.stack([found.total, found.count], dim=1))

        kept = self.value_store.rows("log-probabilities", started.batch.items, compute)
        rows = torch.stack(compute(started.batch) if kept is None else kept)
        return SequenceLogProbs(rows[:, 0], rows[:, 1])

    def _nothing(self) -> Tensor:
        """The part of a loss that falls to a process without a text."""
        return torch.zeros((), device=self.decoder.device)


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:
        loss.backward()
