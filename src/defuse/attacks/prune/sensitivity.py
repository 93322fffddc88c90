"""SNIP scores: how much a loss depends on one neuron or weight (Lee et al. 1810.02340).

With a factor c = 1 before each of them, a text's loss L changes by about ∂L/∂c when it is
removed. For a weight ∂L/∂c is w · ∂L/∂w, for a neuron the sum of that over its output weights.
Scores are means over texts, of |∂L/∂c| (Wei et al. 2402.05162, eq. 1) or of ∂L/∂c itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from defuse.data.collate import TextBatch
from defuse.losses.tokens import next_token_log_probs
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model, sharing_copy
from defuse.models.lm_head import tokenwise
from defuse.models.lora import adapted_modules

Scores = dict[str, Tensor]  # by the parameter's full name, in float32 on the CPU


def neuron_scores(
    model: PreTrainedModel, batches: Sequence[TextBatch], *, signed: bool = False
) -> Scores:
    """Return scores of every MLP neuron, (neurons,), by the name of the block's output matrix."""
    copy = sharing_copy(model, [])  # hooks on it do not touch the model
    decoder = Decoder(copy, recompute=True)
    names = [matrix_name(decoder, layer) for layer in range(decoder.num_layers)]
    factors: dict[str, Tensor] = {}
    for name, block in zip(names, decoder.blocks, strict=True):
        output = block.get_submodule(decoder.architecture.mlp_output)
        output.register_forward_pre_hook(_times_factor(name, factors))
    scores: Scores = {}
    with frozen_model(copy):
        for batch in batches:
            factors.clear()
            loss = _text_losses(decoder, batch, {}).sum()
            found = torch.autograd.grad(loss, [factors[name] for name in names])
            for name, gradient in zip(names, found, strict=True):
                _add(scores, name, gradient[:, 0], signed)
    return _per_text(scores, batches)


def weight_scores(
    model: PreTrainedModel, batches: Sequence[TextBatch], *, signed: bool = False
) -> Scores:
    """Return scores of every weight of the blocks' linear modules, in the parameters' shapes.

    `batches` hold one text each, since absolute values are taken text by text.
    """
    decoder = Decoder(model, recompute=True)
    modules = adapted_modules(decoder, range(decoder.num_layers), None)
    weights = {
        f"{name}.weight": module.get_parameter("weight").detach()
        for name, module in modules.items()
    }
    scores: Scores = {}
    with frozen_model(model):
        for batch in batches:
            own = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
            loss = _text_losses(decoder, batch, own).sum()
            found = torch.autograd.grad(loss, list(own.values()))
            for (name, weight), gradient in zip(weights.items(), found, strict=True):
                _add(scores, name, (weight * gradient)[None], signed)
    return _per_text(scores, batches)


def matrix_name(decoder: Decoder, layer: int) -> str:
    """The full name of the output matrix of a block's MLP."""
    return decoder.parameter_name(layer, f"{decoder.architecture.mlp_output}.weight")


def _times_factor(
    name: str, factors: dict[str, Tensor]
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
    """Return a hook that multiplies each neuron of each text by a factor, (texts, 1, neurons)."""

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        (hidden,) = inputs
        if name not in factors:  # otherwise the block is recomputed for the backward pass
            ones = hidden.new_ones(hidden.shape[0], 1, hidden.shape[2])
            factors[name] = ones.requires_grad_()
        return (hidden * factors[name],)

    return hook


def _text_losses(decoder: Decoder, batch: TextBatch, weights: Mapping[str, Tensor]) -> Tensor:
    """Mean −log p of each text's predicted tokens (nats), (texts,)."""
    hidden, inputs = decoder.embed(batch.input_ids, lengths=batch.lengths)
    hidden = decoder.run(hidden, inputs, 0, decoder.num_layers, weights)

    def score(rows: Tensor, where: slice) -> Tensor:
        return -next_token_log_probs(decoder.logits(rows), batch.labels[where])

    values = tokenwise(score, hidden.flatten(0, 1)[batch.predicted_at], decoder.vocab_size)
    counts = batch.sequence.bincount(minlength=len(batch.items))
    return values.new_zeros(len(batch.items)).index_add(0, batch.sequence, values) / counts


def _add(scores: Scores, name: str, gradients: Tensor, signed: bool) -> None:
    """Add the `gradients` (texts, …) of one batch."""
    each = gradients.float() if signed else gradients.float().abs()
    total = each.sum(dim=0).cpu()
    if name in scores:
        scores[name] += total
    else:
        scores[name] = total


def _per_text(scores: Scores, batches: Sequence[TextBatch]) -> Scores:
    texts = sum(len(batch.items) for batch in batches)
    for total in scores.values():
        total.div_(texts)  # in place: two tensors for each weight might not fit
    return scores
