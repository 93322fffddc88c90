"""Quantisation: does the knowledge come back when weights are rounded (2410.16454)?

Weight-only, to the nearest of 2^bits - 1 levels symmetric about 0, a scale for each group of
inputs. What was unlearned by small changes of the weights may be rounded away. The rounding is
simulated exactly: the weights are the dequantised ones, in the model's own number type, so that it
runs on any device.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.material import Material, ask_all
from defuse.attacks.notes import Notes
from defuse.attacks.results import Condition, Example, Result, condition, examples
from defuse.borrowed import sharing_copy
from defuse.decoder import Decoder
from defuse.errors import require

KIND = "quantise"


@dataclass(frozen=True)
class Quantisation:
    """`bits`: of each weight, tried in turn. `group_size`: inputs that share a scale; 0 = all of a
    row. `seed` draws bootstraps."""

    bits: tuple[int, ...] = (8, 4)
    group_size: int = 128
    seed: int = 42

    def __post_init__(self) -> None:
        require(bool(self.bits), "quantise.bits", self.bits, "must name at least one width")
        for bits in self.bits:
            require(2 <= bits <= 16, "quantise.bits", bits, "is no width of a weight: use 2 to 16")
        require(
            self.group_size >= 0, "quantise.group_size", self.group_size, "must not be negative"
        )


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: Quantisation | None = None,
    *,
    notes: Notes | None = None,
) -> Result:
    """Ask `model` with its linear weights as they are, and rounded to each width."""
    config, notes = config or Quantisation(), notes or Notes()
    conditions: list[Condition] = []
    turned: list[Example] = []
    with notes.watching(model):
        before = ask_all(model, tokenizer, material, notes, "before")
        for bits in config.bits:
            rounded, error = quantised(model, bits, config.group_size)
            after = ask_all(rounded, tokenizer, material, notes, f"{bits} bits")
            numbers = {"relative_error": error}
            conditions.append(condition(f"{bits} bits", before, after, config.seed, numbers))
            turned.extend(examples(f"{bits} bits", before, after, material.settings.score))
    return Result(KIND, asdict(config), conditions, notes.cost, turned)


def quantised(model: PreTrainedModel, bits: int, group_size: int) -> tuple[PreTrainedModel, float]:
    """A copy with rounded linear weights in all blocks, and ‖rounded − w‖ / ‖w‖ over all of them.

    All other tensors are shared with `model`.
    """
    copy = sharing_copy(model, [linear.weight for linear in linears(model)])
    squares, errors = 0.0, 0.0
    for linear in linears(copy):
        weight = linear.weight.detach()
        rounded = round_to_nearest(weight, bits, group_size)
        squares += float(weight.double().square().sum())
        errors += float((rounded.double() - weight.double()).square().sum())
        weight.copy_(rounded)
    return copy, (errors / squares) ** 0.5


def linears(model: PreTrainedModel) -> Iterator[nn.Linear]:
    """The linear modules of all blocks; embedding and head stay as they are."""
    for block in Decoder(model).blocks:
        yield from (module for module in block.modules() if isinstance(module, nn.Linear))


@torch.no_grad()
def round_to_nearest(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """`weight` (outputs, inputs), each group of inputs on its own grid of 2^bits - 1 levels."""
    outputs, inputs = weight.shape
    size = group_size or inputs
    exact = weight.float()
    padded = nn.functional.pad(exact, (0, -inputs % size)).view(outputs, -1, size)
    levels = 2 ** (bits - 1) - 1
    scale = padded.abs().amax(dim=2, keepdim=True) / levels
    scale = scale.where(scale > 0, 1.0)
    rounded = (padded / scale).round().clamp(-levels, levels) * scale
    return rounded.view(outputs, -1)[:, :inputs].to(weight.dtype)
