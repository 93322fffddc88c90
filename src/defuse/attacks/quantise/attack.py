"""Quantisation: does the knowledge come back when weights are rounded (2410.16454)?

Weight-only, to the nearest of 2^bits - 1 levels symmetric about 0, a scale for each group of
inputs. What was unlearned by small changes of the weights may be rounded away. The rounding is
simulated exactly: the weights are the dequantised ones, in the model's own number type, so that it
runs on any device. Where torchao or bitsandbytes are installed, they can quantise instead.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import Material, ask_all
from defuse.attacks.notes import Notes
from defuse.attacks.quantise.backends import BACKENDS, quiet_backends
from defuse.attacks.results import Result
from defuse.attacks.variants import Change, Made, ask_changed
from defuse.models.decoder import Decoder
from defuse.models.freeze import sharing_copy
from defuse.models.load import require_plain_weights
from defuse.models.lora import LINEAR
from defuse.utils.errors import UsageError, check_choices, require
from defuse.utils.precision import upcast

KIND = "quantise"


@dataclass(frozen=True)
class Quantisation:
    """`bits`: of each weight, tried in turn. `group_size`: inputs that share a scale; 0 = all of a
    row (bitsandbytes has its own groups). `backend`: who quantises. `seed` draws bootstraps."""

    bits: tuple[int, ...] = (8, 4)
    group_size: int = 128
    backend: Literal["simulated", "torchao", "bitsandbytes"] = "simulated"
    seed: int = 42

    def __post_init__(self) -> None:
        check_choices(self, "quantise.")
        require(bool(self.bits), "quantise.bits", self.bits, "must name at least one width")
        can = BACKENDS[self.backend].bits
        for bits in self.bits:
            remedy = f"is no width of {self.backend} weights: use {' or '.join(map(str, can))}"
            require(bits in can, "quantise.bits", bits, remedy)
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
    """Ask `model` with its linear weights as they are, and quantised to each width.

    Raises UsageError for a backend that is not installed or cannot take the model's matrices, and
    for a model that is quantised already.
    """
    config, notes = config or Quantisation(), notes or Notes()
    check(model, config)
    changes = [
        Change(f"{bits} bits", partial(quantised, model, bits, config)) for bits in config.bits
    ]
    with notes.watching(model), quiet_backends():
        before = ask_all(model, tokenizer, material, notes, "before")
        conditions, turned = ask_changed(changes, tokenizer, material, before, notes, config.seed)
    return Result(KIND, asdict(config), conditions, notes.cost, turned)


def check(model: PreTrainedModel, config: Quantisation) -> None:
    """Raise UsageError for what `quantised` cannot do."""
    backend = BACKENDS[config.backend]
    backend.check_installed(config.backend)
    require_plain_weights(model, "model", "give it as it was before")
    found = [
        (f"{index}.{name}", linear)
        for index, block in enumerate(Decoder(model).blocks)
        for name, linear in block.named_modules()
        if isinstance(linear, LINEAR)
    ]
    if not found:
        raise UsageError("model: its blocks have no linear modules whose weights to quantise")
    for name, linear in found:
        inputs, size = as_linear(linear).in_features, config.group_size
        cut = backend.whole_groups and size > 0 and inputs % size > 0
        remedy = f"does not divide the {inputs} inputs of block {name}, as torchao needs: use 0"
        require(not cut, "quantise.group_size", size, remedy)


def quantised(model: PreTrainedModel, bits: int, config: Quantisation) -> Made:
    """A copy with quantised linear weights in all blocks, and their ‖new − w‖ / ‖w‖ over all.

    All other tensors are shared with `model`; embedding and head stay as they are.
    """
    copy = sharing_copy(model, [])
    quantise = BACKENDS[config.backend].quantise
    squares, errors = 0.0, 0.0
    for parent, name, linear in linears(copy):
        plain = as_linear(linear)
        old = plain.weight.detach()
        module, new = quantise(plain, bits, config.group_size)
        setattr(parent, name, module)
        squares += float(upcast(old).square().sum())
        errors += float((upcast(new) - upcast(old)).square().sum())
    return copy, {"relative_error": (errors / squares) ** 0.5}


def linears(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """The linear modules of all blocks: each with the module that has it, and its name there."""
    for block in Decoder(model).blocks:
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LINEAR):
                    yield parent, name, child


def as_linear(module: nn.Module) -> nn.Linear:
    """A linear module with the same tensors; GPT-2's are (inputs, outputs) and so transposed."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    weight = weight.detach() if isinstance(module, nn.Linear) else weight.detach().T
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = module.bias  # type: ignore[assignment]
    return linear
