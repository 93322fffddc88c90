"""What the benchmarks count by hand is what PyTorch counts as it runs."""

from typing import Any

import pytest
import torch
from benchmarks.cost import kept_bytes, step_flops
from benchmarks.shapes import Shape, random_model
from benchmarks.sides import Setting, plain_side, shared_side, unlearning_for
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from defuse.methods import METHODS
from defuse.models.decoder import Decoder
from defuse.unlearning.config import trained_parameters

TINY = Shape(10, 32, 48, 4, 2, 61, texts=2, tokens=7)


class Operations(TorchDispatchMode):
    """By PyTorch's own formulas; its FlopCounterMode cannot look into `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket, lambda *_, **__: 0)
        self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


@pytest.mark.parametrize("noise_std", [0.0, 0.1], ids=["plain", "rna"])
@pytest.mark.parametrize("method", METHODS)
def test_operations_of_a_step_on_either_side(method: str, noise_std: float) -> None:
    unlearning = unlearning_for(method, noise_std)
    setting = Setting(TINY, unlearning, "cpu", torch.float32)
    model = setting.model()
    model.set_attn_implementation("eager")  # whose matrix products PyTorch counts on the CPU too
    for side, plain in ((plain_side, True), (shared_side, False)):
        step = side(model, unlearning).step
        with Operations() as counted:
            step(setting.batch(0), 0)
        assert step_flops(TINY, unlearning, plain=plain) == counted.total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["rmu", "simnpo"])
def test_what_the_blocks_keep_for_the_backward_pass(method: str, dtype: torch.dtype) -> None:
    """Every tensor kept, but for weights and the angles of the positions, which blocks share."""
    unlearning = unlearning_for(method, 0.0)
    decoder = Decoder(random_model(TINY, dtype=dtype))
    originals = trained_parameters(decoder, unlearning)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in originals.items()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hidden, inputs = decoder.embed(torch.zeros(TINY.texts, TINY.tokens, dtype=torch.long))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder.run(hidden, inputs, 5, 8 if method == "rmu" else 10, weights)
    shared = [*decoder.model.parameters(), *weights.values(), *inputs.rotary["full_attention"]]
    shared_at = {tensor.untyped_storage().data_ptr() for tensor in shared}
    found = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in shared_at)
    assert found == kept_bytes(TINY, unlearning, dtype)
