"""Functions that quantise a linear module: simulated, or by torchao or bitsandbytes.

Each receives a linear module, which it may change but not its tensors. It returns the module to run
and its dequantised weights (outputs, inputs).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from defuse.utils.errors import UsageError
from defuse.utils.precision import upcast

Quantised = tuple[nn.Module, Tensor]


@dataclass(frozen=True)
class Backend:
    """`quantise(linear, bits, group_size)`, the widths `bits` it knows, the `package` it needs.

    `whole_groups`: the group size must divide the number of inputs.
    """

    quantise: Callable[[nn.Linear, int, int], Quantised]
    bits: tuple[int, ...]
    package: str | None = None
    whole_groups: bool = False

    def check_installed(self, name: str) -> None:
        """Raise UsageError if the package is missing."""
        if self.package is not None and find_spec(self.package) is None:
            raise UsageError(
                f"quantise.backend: {name!r} needs the {self.package} package; pip install "
                f"{self.package}, or use 'simulated'"
            )


@contextmanager
def quiet_backends() -> Iterator[None]:
    """Silence the warning of bitsandbytes, at every module, that its inputs become float16."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def round_to_nearest(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Round each group of inputs of `weight` (outputs, inputs) to 2^bits - 1 levels of its own.

    With m = 2^(bits-1) - 1 and s = max|w| / m over the group: s · round(w / s), from -m·s to m·s.
    A group is `group_size` inputs (0: a whole row); the last one may be shorter. Computed in
    float32, or in float64 if `weight` is.
    """
    outputs, inputs = weight.shape
    size = group_size or inputs
    padded = nn.functional.pad(upcast(weight), (0, -inputs % size)).reshape(outputs, -1, size)
    levels = 2 ** (bits - 1) - 1
    scale = padded.abs().amax(dim=2, keepdim=True) / levels
    scale = scale.where(scale > 0, 1.0)
    rounded = (padded / scale).round().clamp(-levels, levels) * scale
    return rounded.reshape(outputs, -1)[:, :inputs].to(weight.dtype)


def _simulated(linear: nn.Linear, bits: int, group_size: int) -> Quantised:
    weight = round_to_nearest(linear.weight.detach(), bits, group_size)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear, weight


def _torchao(linear: nn.Linear, bits: int, group_size: int) -> Quantised:
    """Symmetric integers of any width on any device (`IntxWeightOnlyConfig`)."""
    torchao = import_module("torchao.quantization")
    group = torchao.PerGroup(group_size) if group_size else torchao.PerAxis(0)
    config = torchao.IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), granularity=group)
    torchao.quantize_(linear, config)
    return linear, linear.weight.dequantize()


OUTLIERS = 6.0  # larger inputs stay in half precision (LLM.int8(), 2208.07339, section 3.2)


def _bitsandbytes(linear: nn.Linear, bits: int, _: int) -> Quantised:
    """Its own groups: blocks of 64 for 4 bits (fp4), rows for 8 (LLM.int8())."""
    bnb = import_module("bitsandbytes")
    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    old = linear.weight.detach()
    if bits == 8:
        options = {"has_fp16_weights": False}
        new = bnb.nn.Linear8bitLt(*shape, threshold=OUTLIERS, device="meta", **options)
        new.weight = bnb.nn.Int8Params(old, requires_grad=False, **options)
    else:
        new = bnb.nn.Linear4bit(*shape, compute_dtype=old.dtype, device="meta")
        new.weight = bnb.nn.Params4bit(old, requires_grad=False, module=new)
    new.bias = linear.bias
    new = new.to(old.device)  # which quantises
    if bits == 8:
        return new, new.weight.CB * new.weight.SCB[:, None] / 127
    return new, bnb.functional.dequantize_4bit(new.weight.data, new.weight.quant_state)


BACKENDS: Mapping[str, Backend] = {
    "simulated": Backend(_simulated, tuple(range(2, 17))),
    "torchao": Backend(_torchao, tuple(range(2, 9)), "torchao", whole_groups=True),
    "bitsandbytes": Backend(_bitsandbytes, (4, 8), "bitsandbytes"),
}
