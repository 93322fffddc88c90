"""LoRA (Hu et al. 2106.09685) with peft: the trained tensors are small factors of each matrix.

The model with its initial factors (B = 0) equals the reference to the last bit. The trained factors
are swapped in like any other trained tensor, so LoRA needs no second model either.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from defuse.models.decoder import Decoder
from defuse.utils.config import Count, Positive, check_fields
from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError, require
from defuse.utils.random import generator

if TYPE_CHECKING:
    from peft import PeftModel

FACTOR = ".lora_"
LINEAR = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class LoRA:
    """W + (alpha / rank)·B·A instead of W; A (rank, in) starts random, B (out, rank) at 0.

    `merge`: add the trained factors to their matrices at the end, instead of keeping an adapter.
    """

    rank: Count = 16
    alpha: Positive = 32.0
    merge: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "train.lora")


def adapted_modules(
    decoder: Decoder, layers: Sequence[int], wanted: str | Sequence[str] | None
) -> dict[str, nn.Module]:
    """The linear modules of the blocks `layers` to adapt, by the model's own names.

    `wanted`: names within a block, such as "mlp.down_proj" or "mlp"; None and "all" are all linear
    modules. Raises UsageError for a name that matches none, and lists those of the block.
    """
    names = ["all"] if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    found: dict[str, nn.Module] = {}
    for layer in layers:
        modules = decoder.blocks[layer].named_modules()
        linear = {key: module for key, module in modules if isinstance(module, LINEAR)}
        for name in names:
            matches = [key for key in linear if name == "all" or f"{key}.".startswith(f"{name}.")]
            if not matches:
                raise UsageError(
                    f"train.parameters: {name!r} matches no linear module in block {layer}, which "
                    f"LoRA needs; it has {', '.join(linear)}"
                )
            found |= {decoder.parameter_name(layer, key): linear[key] for key in matches}
    return found


def check_rank(modules: Mapping[str, nn.Module], rank: int, field: str) -> None:
    """Raise UsageError for a rank beyond a matrix's own, its smaller side."""
    for name, module in modules.items():
        weight: torch.Tensor = module.weight  # type: ignore[assignment] (a linear module)
        most = min(weight.shape)
        remedy = f"is more than the rank of {name} can be: use 1 to {most}"
        require(rank <= most, field, rank, remedy)


def check_installed() -> None:
    """Raise UsageError where peft is missing."""
    if find_spec("peft") is None:
        raise UsageError(f"train.lora: needs the peft package; {install_hint('peft')}")


def add_factors(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], lora: LoRA, seed: int
) -> "PeftModel":
    """Add factors to `modules` of `model`, in place; each A is drawn from (seed, its name)."""
    from peft import LoraConfig, get_peft_model

    check_rank(modules, lora.rank, "lora")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] (peft only divides it)
        target_modules=list(modules),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules.values()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 uses the old name of a property of transformers 5.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        adapter = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, tensor in factors(model).items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(tensor.shape[1])  # peft's own scale
            draw = torch.rand(tensor.shape, generator=generator(seed, "lora", name))
            tensor.data.copy_((2 * draw - 1) * bound)
    return adapter  # type: ignore[return-value] (of a plain model it is never a mixed one)


def factors(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """All factors by the model's own names for them."""
    return {name: tensor for name, tensor in model.named_parameters() if FACTOR in name}
