"""Removal of one direction from the outputs of blocks, or from the weights that write it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from defuse.data.collate import TextBatch
from defuse.models.decoder import Decoder
from defuse.models.freeze import evaluation_mode, sharing_copy
from defuse.utils.precision import upcast


@dataclass(frozen=True)
class Removal:
    """The component along `unit` (d,) is replaced by `left`, at every token."""

    unit: Tensor
    left: float = 0.0


@torch.no_grad()
def means(model: PreTrainedModel, batches: Sequence[TextBatch]) -> Tensor:
    """Return mean hidden states after each block, (L, d) in float64, over the tokens of the texts.

    The first token of each text, whose state is an attention sink, is left out.
    """
    decoder = Decoder(model)
    total = torch.zeros(decoder.num_layers, decoder.hidden_size, dtype=torch.float64)
    count = 0
    with evaluation_mode(model):
        for batch in batches:
            ids = batch.input_ids.to(decoder.device)
            hidden, inputs = decoder.embed(ids, lengths=batch.lengths)
            counted_at = batch.counted_at.to(decoder.device)
            count += len(counted_at)
            for layer in range(decoder.num_layers):
                hidden = decoder.run(hidden, inputs, layer, layer + 1)
                counted = upcast(hidden.flatten(0, 1)[counted_at])
                total[layer] += counted.sum(dim=0).cpu().double()
    return total / count


def without(model: PreTrainedModel, removals: Mapping[int, Removal]) -> PreTrainedModel:
    """Return a copy whose blocks output h − r (rᵀh − left); it shares all tensors with `model`."""
    copy = sharing_copy(model, [])
    blocks = Decoder(copy).blocks
    for layer, removal in removals.items():
        blocks[layer].register_forward_hook(_remove(removal))
    return copy


def _remove(removal: Removal) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_: nn.Module, __: object, output: Any) -> Any:  # noqa: ANN401 (a block's output)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        exact = upcast(hidden)
        unit = removal.unit.to(exact)
        kept = exact - ((exact @ unit) - removal.left)[..., None] * unit
        kept = kept.to(hidden.dtype)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    return hook


@torch.no_grad()
def with_weights(model: PreTrainedModel, unit: Tensor) -> PreTrainedModel:
    """Return a copy whose embedding and blocks write nothing along `unit` (d,): W − r rᵀW.

    All other tensors are shared with `model`, also a head tied to the embedding, which only reads.
    """
    copy = sharing_copy(model, [])
    for module, gain in writers(copy):
        direction = unit if gain is None else unit.to(gain) * gain
        direction = direction / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny)
        for name, tensor in list(module.named_parameters(recurse=False)):
            projected = _projected(tensor, direction, _output_axis(module, tensor))
            setattr(module, name, nn.Parameter(projected, requires_grad=tensor.requires_grad))
    return copy


def writers(model: PreTrainedModel) -> Iterator[tuple[nn.Module, Tensor | None]]:
    """Yield the modules whose output joins the residual stream, with the gains it is scaled by.

    Gemma normalises the outputs of attention and MLP. A norm divides by a number and multiplies by
    gains g, so its output has no component along r if its input has none along r ∘ g.
    """
    decoder = Decoder(model)
    yield model.get_input_embeddings(), None
    if decoder.architecture.positions is not None:
        yield model.get_submodule(decoder.architecture.positions), None
    paths = decoder.architecture.attention_output, decoder.architecture.mlp_output
    for block in decoder.blocks:
        for path, norm in zip(paths, decoder.architecture.output_norms, strict=True):
            ones = torch.ones(decoder.hidden_size, device=model.device, dtype=model.dtype)
            gain = None if norm is None else upcast(block.get_submodule(norm)(ones))
            yield block.get_submodule(path), gain


def _output_axis(module: nn.Module, tensor: Tensor) -> int:
    """The dimension of a parameter that holds the output units."""
    return 0 if isinstance(module, nn.Linear) or tensor.ndim == 1 else 1


def _projected(tensor: Tensor, unit: Tensor, axis: int) -> Tensor:
    rows = upcast(tensor).movedim(axis, -1)
    unit = unit.to(rows)
    kept = rows - (rows @ unit)[..., None] * unit
    return kept.movedim(-1, axis).to(tensor.dtype).contiguous()
