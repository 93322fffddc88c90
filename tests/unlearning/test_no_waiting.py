"""No step waits for its device: what does not depend on tensors' values can be queued ahead.

There need be no GPU. Meta tensors have no values, so that whatever asks for one raises; noise
cannot be drawn there, so on the CPU every operation that would ask is refused by name.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from defuse.data.collate import TextBatch
from defuse.methods import RMU, HiddenMSE, LogitKL, LogitMSE, Method, Retain, SimNPO
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.unlearning.batches import StepBatch
from defuse.unlearning.config import Unlearning, trained_parameters
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.objective import Objective
from defuse.unlearning.step import SharedPrefixStep
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.unlearning.test_step import LAYER, METHODS, objective_for, reference_for, step_batch

NOISE = GaussianNoise(std=0.5)
# Forget and retain losses know nothing of each other: each of both once.
CASES: list[tuple[Method, Retain]] = [
    *((method, LogitKL()) for method in METHODS),
    (RMU(), HiddenMSE()),
    (SimNPO(), LogitMSE()),
]
aten = torch.ops.aten
ASKS_FOR_VALUES = {
    aten._local_scalar_dense.default,  # item, tolist, bool, int, float
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
    aten.equal.default,
    aten.lift_fresh.default,  # torch.tensor, new_tensor: a copy from the host
}
TAKES_INDICES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class NoWaiting(TorchDispatchMode):
    """Refuses operations that would wait for a GPU to say what it has computed."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        by_mask = func in TAKES_INDICES and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in ASKS_FOR_VALUES or by_mask or _leaves_device(func, args, kwargs or {}):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def _leaves_device(func: object, args: Any, kwargs: Any) -> bool:
    if func is aten.copy_.default:
        return args[0].device != args[1].device
    elsewhere = kwargs.get("device") if func is aten._to_copy.default else None
    return elsewhere is not None and elsewhere != args[0].device


def take_a_step(
    unlearning: Unlearning, device: str, *, kind: str = "llama", cached: bool = False
) -> None:
    model = tiny_model(kind).to(device)  # type: ignore[arg-type]
    originals = trained_parameters(Decoder(model), unlearning)
    weights = {name: t.detach().clone().requires_grad_() for name, t in originals.items()}
    on_host = step_batch()
    parts = (on_host.forget, on_host.retain, on_host.refusal)
    batch = StepBatch(*(moved(part, device) for part in parts if part is not None))
    objective = objective_on(device, unlearning)
    reference = reference_for(Decoder(model), unlearning, batch if cached else None)
    step = SharedPrefixStep(reference, unlearning, weights)
    with frozen_model(model), NoWaiting():
        step.backward(objective, batch, 0)
    assert all(tensor.grad is not None for tensor in weights.values())


def moved(batch: TextBatch, device: str) -> TextBatch:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
    return replace(batch, **tensors)


def objective_on(device: str, unlearning: Unlearning) -> Objective:
    objective = objective_for(unlearning)
    if objective.steering is None:
        return objective
    direction = objective.steering.direction.to(device)
    return replace(objective, steering=replace(objective.steering, direction=direction))


@pytest.mark.parametrize(("method", "retain"), CASES, ids=repr)
def test_a_step_needs_no_value_of_any_tensor(method: Method, retain: Retain) -> None:
    take_a_step(Unlearning(method, retain, layer=LAYER), "meta", cached=True)


@pytest.mark.parametrize(("method", "retain"), CASES, ids=repr)
def test_nor_does_a_step_with_noise(method: Method, retain: Retain) -> None:
    take_a_step(Unlearning(method, retain, NOISE, layer=LAYER), "cpu")


@pytest.mark.parametrize("kind", CONFIGS)
def test_nor_does_any_architecture_s(kind: str) -> None:
    take_a_step(Unlearning(SimNPO(), LogitKL(), NOISE, layer=LAYER), "cpu", kind=kind)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.new_tensor(1.0),
        lambda x: x.to("meta"),
        lambda x: x.copy_(torch.empty(2, device="meta")),
    ],
)
def test_what_waits_is_seen(waits: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        waits(torch.ones(2))
