"""The unlearning step as published code takes it: two whole models, full forward passes, hooks.

Formulas are written out on whole (batch, time, vocabulary) tensors, independently of
`defuse.losses`, so that it serves the tests as a reference and the benchmarks as a rival.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from defuse.data.collate import TextBatch
from defuse.methods import (
    DPO,
    NPO,
    RMU,
    RSV,
    AdaptiveRMU,
    HiddenMSE,
    LogitKL,
    PreferenceMethod,
    SimNPO,
)
from defuse.models.decoder import Decoder
from defuse.unlearning.batches import StepBatch
from defuse.unlearning.config import Unlearning
from defuse.unlearning.noise import add_noise
from defuse.unlearning.objective import Objective


@dataclass(frozen=True)
class PlainStep:
    """`updated` is trained in place; `reference` is a second, frozen model."""

    updated: PreTrainedModel
    reference: PreTrainedModel
    unlearning: Unlearning
    seed: int

    def backward(self, objective: Objective, batch: StepBatch, step: int) -> tuple[Tensor, Tensor]:
        """One graph for both losses, one backward pass; returns (forget, retain)."""
        forget = self.forget_loss(objective, batch)
        retain = self.retain_loss(objective, batch.retain, step)
        (forget + objective.weight * retain).backward()
        return forget.detach(), retain.detach()

    def forget_loss(self, objective: Objective, batch: StepBatch) -> Tensor:
        method = self.unlearning.method
        if isinstance(method, PreferenceMethod):
            return self._preference(method, batch)
        hidden, _ = self._forward(self.updated, batch.forget)
        with torch.no_grad():
            fixed = (
                self._forward(self.reference, batch.forget)[0] if method.needs_reference else hidden
            )
        steering = objective.steering
        assert steering is not None
        mask = batch.forget.counted
        if isinstance(method, RMU):
            target = steering.strength * steering.direction.expand_as(hidden)
        elif isinstance(method, RSV):
            target = fixed + steering.strength * steering.direction
        elif isinstance(method, AdaptiveRMU) and method.scale_per == "topic":
            target = steering.strength * steering.first_norm * steering.direction.expand_as(hidden)
        else:
            norms = torch.stack(
                [h[m].norm(dim=-1).mean() for h, m in zip(fixed, mask, strict=True)]
            )
            target = steering.strength * norms[:, None, None] * steering.direction
        return (hidden - target)[mask].pow(2).mean() / objective.hidden_scale

    def retain_loss(self, objective: Objective, batch: TextBatch, step: int) -> Tensor:
        hidden, logits = self._forward(self.updated, batch)
        with torch.no_grad(), self._noise_at_layers(batch, objective.noise, step) as noised:
            _, fixed_logits = self._forward(self.reference, batch)
        mask = batch.counted
        if isinstance(self.unlearning.retain, HiddenMSE):
            return (hidden - noised[0])[mask].pow(2).mean() / objective.hidden_scale
        log_p, log_p0 = logits.log_softmax(-1)[mask], fixed_logits.log_softmax(-1)[mask]
        if isinstance(self.unlearning.retain, LogitKL):
            return (log_p0.exp() * (log_p0 - log_p)).sum(-1).mean()
        return (log_p - log_p0).pow(2).mean()

    def _preference(self, method: PreferenceMethod, batch: StepBatch) -> Tensor:
        assert isinstance(method, NPO | DPO | SimNPO)
        forget, beta = self._log_prob(self.updated, batch.forget, method), method.beta
        if isinstance(method, SimNPO):
            return (-2 / beta * logsigmoid(-beta * forget - method.gamma)).mean()
        with torch.no_grad():
            reference = self._log_prob(self.reference, batch.forget, method)
        if isinstance(method, NPO):
            return (-2 / beta * logsigmoid(-beta * (forget - reference))).mean()
        assert batch.refusal is not None
        with torch.no_grad():
            refusal_reference = self._log_prob(self.reference, batch.refusal, method)
        chosen = self._log_prob(self.updated, batch.refusal, method) - refusal_reference
        return (-2 / beta * logsigmoid(beta * (chosen - (forget - reference)))).mean()

    def _log_prob(
        self, model: PreTrainedModel, batch: TextBatch, method: NPO | DPO | SimNPO
    ) -> Tensor:
        """Per sequence, or one for the whole batch; summed or per token."""
        _, logits = self._forward(model, batch)
        log_p = logits[:, :-1].log_softmax(-1)
        log_p = log_p.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        counted = torch.zeros_like(batch.counted)
        counted.view(-1)[batch.predicted_at + 1] = True
        total, count = (log_p * counted[:, 1:]).double().sum(1), counted[:, 1:].sum(1)
        if method.reduction == "batch":
            total, count = total.sum()[None], count.sum()[None]
        return total / count if method.normalise == "mean" else total

    def _forward(self, model: PreTrainedModel, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Hidden states at layer l by a hook, and logits: at least in float32, as losses are."""
        seen: list[Tensor] = []
        block = Decoder(model).blocks[self.unlearning.layer]
        handle = block.register_forward_hook(lambda *call: seen.append(_hidden(call[-1])))
        try:
            mask = torch.zeros_like(batch.counted)
            for row, span in enumerate(batch.spans):
                mask[row, span] = True
            position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)
            logits = model(
                input_ids=batch.input_ids,
                attention_mask=mask.long() if batch.attention_mask is None else _square(mask),
                position_ids=position_ids,
                use_cache=False,
            ).logits
        finally:
            handle.remove()
        return _exact(seen[0]), _exact(logits)

    @contextmanager
    def _noise_at_layers(
        self, batch: TextBatch, noise: Mapping[int, float], step: int
    ) -> Iterator[list[Tensor]]:
        """The same draws as the engine's, joined to the reference's residual stream by hooks.

        Yields a list for the states at the steering layer, in half precision as float32.
        """
        noised: list[Tensor] = []
        masked = self.unlearning.mask_padding
        spans = batch.spans if masked else [slice(None)] * len(batch.items)

        def hook_at(layer: int) -> Callable[..., Tensor]:
            def hook(_module: object, _inputs: object, output: Any) -> Tensor:  # noqa: ANN401
                hidden, steered = _hidden(output), layer == self.unlearning.layer
                purpose = "noise" if steered else f"noise/{layer}"
                std = noise.get(layer, 0.0)
                found = add_noise(hidden, std, spans, self.seed, step, batch.items, purpose)
                if steered:
                    noised.append(found)
                return found.to(hidden.dtype)

            return hook

        blocks = Decoder(self.reference).blocks
        layers = {*noise, self.unlearning.layer}
        handles = [blocks[layer].register_forward_hook(hook_at(layer)) for layer in layers]
        try:
            yield noised
        finally:
            for handle in handles:
                handle.remove()


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _square(mask: Tensor) -> Tensor:
    """Who sees whom, (batch, 1, time, time): what a padded position sees is a convention."""
    causal = torch.ones(mask.shape[1], mask.shape[1], device=mask.device).tril().bool()
    itself = torch.eye(mask.shape[1], device=mask.device).bool()
    return ((causal & mask[:, None, :]) | itself)[:, None]


def _hidden(output: Any) -> Tensor:  # noqa: ANN401
    return output[0] if isinstance(output, tuple) else output
