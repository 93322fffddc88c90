"""The same unlearning step on both sides: two whole models with hooks, and Defuse's."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.plain import PlainStep
from benchmarks.shapes import SEED, Shape, random_model
from defuse.data.collate import TextBatch, collate
from defuse.data.text import Encoded
from defuse.methods import METHODS, HiddenMSE, LogitKL, RepresentationMethod, Steering
from defuse.models.decoder import Decoder
from defuse.unlearning.activation_cache import Bucket, BucketCache
from defuse.unlearning.batches import StepBatch
from defuse.unlearning.config import Unlearning, trained_parameters
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.objective import Objective
from defuse.unlearning.reference import ReferenceModel
from defuse.unlearning.step import SharedPrefixStep
from defuse.utils.random import generator


@dataclass(frozen=True)
class Setting:
    """What is compared, where, and in what precision."""

    shape: Shape
    unlearning: Unlearning
    device: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{self.unlearning.method.name} + {self.unlearning.retain.name}"  # type: ignore[union-attr]

    def model(self) -> PreTrainedModel:
        return random_model(self.shape, device=self.device, dtype=self.dtype)

    def batch(self, turn: int) -> StepBatch:
        """Batch number `turn` of random texts."""
        refusals = hasattr(self.unlearning.method, "refusals")
        kinds = ("forget", "retain", "refusals") if refusals else ("forget", "retain")
        return StepBatch(*(self._texts(kind, turn) for kind in kinds))

    def _texts(self, kind: str, turn: int) -> TextBatch:
        rng, size = generator(SEED, "texts", kind, turn), (self.shape.texts, self.shape.tokens)
        ids = torch.randint(3, self.shape.vocabulary, size, generator=rng).tolist()
        items = [(kind, turn * len(ids) + row) for row in range(len(ids))]
        texts = [Encoded(tuple(row), 1) for row in ids]
        return collate(texts, items, pad_token_id=0, device=self.device)


@dataclass(frozen=True)
class Side:
    """`step` takes a batch and its number, and gives both losses; `gradients` are its last."""

    step: Callable[[StepBatch, int], tuple[Tensor, Tensor]]
    gradients: Callable[[], Sequence[Tensor]]


def unlearning_for(name: str, noise_std: float) -> Unlearning:
    """A method with the retain loss it goes with, layer 7."""
    method = METHODS[name](refusals=("no",)) if name == "dpo" else METHODS[name]()  # type: ignore[call-arg]
    retain = HiddenMSE() if isinstance(method, RepresentationMethod) else LogitKL()
    return Unlearning(method, retain, GaussianNoise(std=noise_std) if noise_std else None, layer=7)


def plain_side(model: PreTrainedModel, unlearning: Unlearning) -> Side:
    """A second whole model is trained by way of float32 masters; `model` is the reference."""
    updated = deepcopy(model)
    names = trained_parameters(Decoder(model), unlearning)
    trained = [updated.get_parameter(name).requires_grad_(True) for name in names]
    masters = [tensor.detach().float() for tensor in trained]
    engine = PlainStep(updated, model, unlearning, SEED)
    objective = objective_for(unlearning, model.config.hidden_size, str(model.device))
    optimiser = adamw(masters)

    def step(batch: StepBatch, turn: int) -> tuple[Tensor, Tensor]:
        updated.zero_grad()
        losses = engine.backward(objective, batch, turn)
        for master, tensor in zip(masters, trained, strict=True):
            master.grad = _gradient(tensor).float()
        optimiser.step()
        with torch.no_grad():
            for master, tensor in zip(masters, trained, strict=True):
                tensor.copy_(master)
        return losses

    return Side(step, lambda: [_gradient(master) for master in masters])


def shared_side(
    model: PreTrainedModel,
    unlearning: Unlearning,
    cached: StepBatch | None = None,
    *,
    recompute: bool = False,
) -> Side:
    """Defuse's step; the frozen model's results for the texts in `cached` are computed once."""
    decoder = Decoder(model, recompute=recompute)
    names = trained_parameters(decoder, unlearning)
    weights = {name: t.detach().to(torch.float32, copy=True) for name, t in names.items()}
    trained = [tensor.requires_grad_() for tensor in weights.values()]
    cache = BucketCache() if cached is None else _cache_of(cached)
    first = unlearning.layers(decoder.num_layers)[0]
    reference = ReferenceModel(decoder, first, cache, cache)
    engine = SharedPrefixStep(reference, unlearning, weights, seed=SEED)
    objective = objective_for(unlearning, model.config.hidden_size, str(model.device))
    optimiser = adamw(trained)

    def step(batch: StepBatch, turn: int) -> tuple[Tensor, Tensor]:
        optimiser.zero_grad()
        losses = engine.backward(objective, batch, turn)
        optimiser.step()
        return losses.forget, losses.retain

    return Side(step, lambda: [_gradient(tensor) for tensor in trained])


def objective_for(unlearning: Unlearning, hidden: int, device: str = "cpu") -> Objective:
    direction = torch.rand(hidden, generator=generator(SEED, "direction"))
    direction = (direction / direction.norm()).to(device)
    steered = isinstance(unlearning.method, RepresentationMethod)
    given = unlearning.noise
    noise = {} if given is None else {unlearning.layer: given.resolve_std(1.0)}
    steering = Steering(direction, 6.5, 6.5) if steered else None
    return Objective("bench", steering, weight=5.0, noise=noise)


def _cache_of(batch: StepBatch) -> BucketCache:
    parts = [part for part in (batch.forget, batch.retain, batch.refusal) if part is not None]
    return BucketCache(Bucket(p.items[0][0], p.items, lambda p=p: p) for p in parts)


def adamw(trained: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0, fused=True)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad
