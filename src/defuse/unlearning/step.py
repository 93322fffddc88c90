"""The unlearning step: losses and gradients without work that is thrown away.

Blocks below the first trained one run once for the reference and the updated model
(`defuse.unlearning.reference`). The trained tensors are swapped into the caller's model
(`torch.func.functional_call`), so there is no second copy. Objectives on hidden states stop at the
steering layer. The forget and the retain loss are differentiated one after the other, so that only
one of the two graphs is in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.data.collate import TextBatch
from defuse.losses.hidden import hidden_mse
from defuse.losses.sequences import SequenceLogProbs
from defuse.methods import HiddenMSE, LogitRetain, PreferenceMethod, RepresentationMethod
from defuse.models.lm_head import tokenwise
from defuse.unlearning.batches import StepBatch
from defuse.unlearning.config import Unlearning
from defuse.unlearning.noise import add_noise
from defuse.unlearning.objective import Objective
from defuse.unlearning.reference import PartialForward, ReferenceModel, sequence_log_probs
from defuse.utils.distributed import ALONE, Processes


@dataclass(frozen=True)
class StepLosses:
    """Detached scalars; the step minimises forget + weight · retain."""

    forget: Tensor
    retain: Tensor


class SharedPrefixStep:
    """Losses and gradients of one step. `weights` are the trained tensors by their full names.

    The model's parameters must not require gradients (`frozen_model`) and are not changed. With
    several `processes` each gets its own texts of a step; losses and gradients are those of the
    whole step on all of them.
    """

    def __init__(
        self,
        reference: ReferenceModel,
        unlearning: Unlearning,
        weights: Mapping[str, Tensor],
        *,
        seed: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self.reference = reference
        self.decoder = reference.decoder
        self.unlearning = unlearning
        self.weights = weights
        self.seed = seed
        self.processes = processes
        self.top = self.decoder.num_layers
        self.at_layer = unlearning.layer + 1  # hidden states "at layer l" leave block l

    def backward(self, objective: Objective, batch: StepBatch, step: int) -> StepLosses:
        """Add the gradients of forget + weight · retain to `weights`."""
        forget = self.forget_loss(objective, batch)
        _backward(forget)
        retain = self.retain_loss(objective, batch.retain, step)
        _backward(objective.weight * retain)
        return self._add_up(StepLosses(forget.detach(), retain.detach()))

    def forget_loss(self, objective: Objective, batch: StepBatch) -> Tensor:
        """The method's loss on the forget texts: a scalar with its graph."""
        method = self.unlearning.method
        if not isinstance(method, RepresentationMethod):
            return self._preference_loss(method, batch)
        assert objective.steering is not None  # noqa: S101 (objective.make_objectives)
        if not batch.forget.items:
            return self._zero()
        forward = self.reference.start(batch.forget)
        hidden = self._updated(forward, self.at_layer)
        fixed = self.reference.hidden(forward, self.at_layer) if method.needs_reference else None
        target = method.target(objective.steering, fixed, batch.forget.counted)
        loss = hidden_mse(hidden, target, batch.forget.counted) / objective.hidden_scale
        return batch.forget.share * loss

    def retain_loss(self, objective: Objective, batch: TextBatch, step: int) -> Tensor:
        """The retain loss against the reference, with RNA's noise: a scalar with its graph.

        HiddenMSE compares hidden states at layer l; losses on logits need all blocks.
        """
        if not batch.items:
            return self._zero()
        retain, forward = self.unlearning.retain, self.reference.start(batch)
        if isinstance(retain, HiddenMSE):
            target = self._target(forward, objective, step, self.at_layer)
            hidden = self._updated(forward, self.at_layer)
            loss = hidden_mse(hidden, target, batch.counted) / objective.hidden_scale
            return batch.share * loss
        fixed = self._target(forward, objective, step, self.top)
        return batch.share * self._logit_loss(
            retain, self._updated(forward, self.top), fixed, batch
        )

    def _updated(self, forward: PartialForward, stop: int) -> Tensor:
        """The updated model's hidden states before block `stop`, with their graph."""
        first = self.reference.first_trained
        return self.decoder.run(forward.hidden, forward.inputs, first, stop, self.weights)

    def _target(
        self, forward: PartialForward, objective: Objective, step: int, stop: int
    ) -> Tensor:
        """The reference's hidden states before block `stop`, with RNA's noise on the way there."""
        batch, spans = forward.batch, forward.batch.spans
        if not self.unlearning.mask_padding:
            spans = [slice(None)] * len(batch.items)  # padding counts, so it gets noise
        hidden, here = None, 0
        for layer, std in objective.noise.items():
            hidden = self._continue(hidden, forward, here, layer + 1)
            # The steering layer's draws do not depend on whether other layers have noise, too.
            purpose = "noise" if layer == self.unlearning.layer else f"noise/{layer}"
            hidden = add_noise(hidden, std, spans, self.seed, step, batch.items, purpose)
            here = layer + 1
        return (
            hidden
            if hidden is not None and here == stop
            else self._continue(hidden, forward, here, stop)
        )

    def _continue(
        self, hidden: Tensor | None, forward: PartialForward, start: int, stop: int
    ) -> Tensor:
        """The reference's hidden states before block `stop`: its own, or those that follow."""
        if hidden is None:
            return self.reference.hidden(forward, stop)
        return self.reference.run_on(hidden.to(forward.hidden.dtype), forward, start, stop)

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
        updated, fixed = self._log_probs(batch.forget, reference=method.needs_reference)
        refusal = refusal_reference = None
        if batch.refusal is not None:
            refusal, refusal_reference = self._log_probs(batch.refusal, reference=True)
        loss = method.loss(updated, fixed, refusal, refusal_reference)
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
        forward = self.reference.start(batch)
        fixed = self._of_all(self.reference.log_probs(forward), batch) if reference else None
        hidden = self._updated(forward, self.top)
        return self._of_all(sequence_log_probs(self.decoder, hidden, batch), batch), fixed

    def _of_all(self, own: SequenceLogProbs, batch: TextBatch) -> SequenceLogProbs:
        """One's own texts' values in their places among those of all processes."""
        if self.processes.count == 1:
            return own
        empty = own.total.new_zeros(batch.whole)
        total, count = (empty.index_copy(0, batch.places, each) for each in (own.total, own.count))
        everyone = [total.detach().clone(), count.clone()]
        self.processes.add_up(everyone)
        return SequenceLogProbs(everyone[0] + (total - total.detach()), everyone[1])

    def _add_up(self, losses: StepLosses) -> StepLosses:
        """Gradients and losses over all processes, some of which may have had no text."""
        if self.processes.count == 1:
            return losses
        for tensor in self.weights.values():
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        gradients = [tensor.grad for tensor in self.weights.values() if tensor.grad is not None]
        self.processes.add_up(gradients)
        both = torch.stack([losses.forget.double(), losses.retain.double()])
        self.processes.add_up([both])
        return StepLosses(*both)

    def _zero(self) -> Tensor:
        """The share of a loss of a process without a text."""
        return torch.zeros((), device=self.decoder.device)


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:
        loss.backward()
