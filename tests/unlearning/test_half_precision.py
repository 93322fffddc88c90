"""In bfloat16 a step is as near to float32's as the plain step in bfloat16 is."""

from collections.abc import Callable, Sequence

import pytest
import torch
from benchmarks.shapes import Shape
from benchmarks.sides import Setting, Side, plain_side, shared_side, unlearning_for
from torch import Tensor
from transformers import PreTrainedModel

from defuse.methods import METHODS
from defuse.unlearning.config import Unlearning

SMALL = Shape(12, 64, 128, 2, 2, 256, texts=2, tokens=24)
STEPS = 3


def gradients(
    take: Callable[[PreTrainedModel, Unlearning], Side], method: str, dtype: torch.dtype
) -> Sequence[Tensor]:
    """After a few steps, from the same weights, all of them numbers that bfloat16 has."""
    setting = Setting(SMALL, unlearning_for(method, 0.05), "cpu", dtype)
    model = setting.model()
    exact = Setting(SMALL, setting.unlearning, "cpu", torch.float32).model().state_dict()
    model.load_state_dict({name: tensor.bfloat16() for name, tensor in exact.items()})
    side = take(model, setting.unlearning)
    for turn in range(STEPS):
        side.step(setting.batch(turn), turn)
    return side.gradients()


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(((one - other).norm() / other.norm()).item() for one, other in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_rounding_is_no_greater_than_the_plain_step_s(method: str) -> None:
    exact = gradients(shared_side, method, torch.float32)
    plain = gradients(plain_side, method, torch.bfloat16)
    ours = gradients(shared_side, method, torch.bfloat16)
    assert 0 < distance(ours, exact) < 1.25 * distance(plain, exact)
    assert distance(ours, exact) < 2**-5
    assert distance(ours, plain) < 2**-5
