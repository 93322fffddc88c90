"""`recompute` gives the same gradients to the last bit from a fraction of the kept tensors."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.methods import NPO, LogitKL, Method, SimNPO
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.models.lora import LoRA
from defuse.unlearning.config import Topic, Training, Unlearning, trained_parameters
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.recipe import Recipe
from defuse.unlearning.step import SharedPrefixStep
from defuse.unlearning.train import unlearn
from defuse.utils.config import parse
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.unlearning.test_step import LAYER, METHODS, objective_for, reference_for, step_batch

NOISE = GaussianNoise(std=0.5)
TOPIC = Topic("t", ["Gold is a metal."] * 3, ["The cat sleeps."] * 3, weight=2.0)
TRAINING = Training(steps=3, batch_size=2, learning_rate=1e-2)


def gradients(
    method: Method, kind: str, dtype: torch.dtype, *, recompute: bool
) -> dict[str, Tensor | None]:
    model = tiny_model(kind, dtype=dtype)
    unlearning = Unlearning(method, LogitKL(), NOISE, layer=LAYER)
    decoder = Decoder(model, recompute=recompute)
    originals = trained_parameters(decoder, unlearning)
    weights = {name: (1.1 * t.detach().float()).requires_grad_() for name, t in originals.items()}
    with frozen_model(model):
        step = SharedPrefixStep(reference_for(decoder, unlearning), unlearning, weights)
        step.backward(objective_for(unlearning), step_batch(), 0)
    return {name: tensor.grad for name, tensor in weights.items()}


def assert_same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        gradient = found[name]
        assert gradient is not None
        assert wanted is not None
        assert wanted.norm() > 0
        assert torch.equal(gradient, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_gradients_are_the_same_to_the_last_bit(method: Method, dtype: torch.dtype) -> None:
    expected = gradients(method, "llama", dtype, recompute=False)
    assert_same(gradients(method, "llama", dtype, recompute=True), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_so_are_every_architecture_s(kind: str) -> None:
    expected = gradients(SimNPO(), kind, torch.float32, recompute=False)
    assert_same(gradients(SimNPO(), kind, torch.float32, recompute=True), expected)


def test_between_the_passes_only_what_enters_a_block_is_kept() -> None:
    """Three blocks with gradients on 2 × 7 tokens of 32 units: a float32 state each, no more."""
    model = tiny_model("llama").requires_grad_(False)
    decoder = Decoder(model, recompute=True)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    hidden, inputs = decoder.embed(torch.ones(2, 7, dtype=torch.long))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder.run(hidden.requires_grad_(), inputs, 1, 4).sum()
    assert sum(kept.values()) == 3 * 2 * 7 * 32 * 4


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["matrices", "lora"])
def test_training_ends_with_the_same_weights(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, lora: LoRA | None
) -> None:
    unlearning = Unlearning(NPO(), LogitKL(), NOISE, layer=2, lora=lora)
    plain, recomputed = (
        unlearn(
            tiny_llama,
            tiny_tokenizer,
            [TOPIC],
            unlearning,
            replace(TRAINING, recompute=recompute),
        ).changed
        for recompute in (False, True)
    )
    assert all(torch.equal(recomputed[name], tensor) for name, tensor in plain.items())


def test_a_recipe_says_so() -> None:
    topic = {"name": "t", "forget": "f.txt", "retain": "r.txt", "weight": 1}
    fields = {"model": "m", "output": "o", "method": {"name": "simnpo"}, "topics": [topic]}
    assert parse(Recipe, {**fields, "recompute": True}).training().recompute
    assert not parse(Recipe, fields).training().recompute
