"""LoRA: small factors trained beside the matrices, the base model being the reference."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.plain import PlainStep
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from defuse.methods import NPO, RMU, HiddenMSE, LogitKL, SimNPO
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.models.load import load_model
from defuse.models.lora import LoRA, add_factors, factors
from defuse.unlearning.config import Topic, Training, Unlearning, modules_to_adapt
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.recipe import load_recipe
from defuse.unlearning.run import check, run
from defuse.unlearning.step import SharedPrefixStep
from defuse.unlearning.train import Result, unlearn
from defuse.utils.errors import UsageError
from tests.helpers.architectures import tiny_model
from tests.unlearning.test_step import objective_for, reference_for, relative_error, step_batch

IDS = torch.tensor([[1, 5, 9, 30, 7]])
LORA = LoRA(rank=3, alpha=12.0)
FORGET = [f"The virus number {i} is bad." for i in range(6)]
RETAIN = [f"A cat number {i} sleeps well." for i in range(6)]
STEERED = Topic("t", FORGET, RETAIN, coefficient=3.0, weight=2.0)
UNSTEERED = replace(STEERED, coefficient=None)
TRAINING = Training(steps=4, batch_size=2, learning_rate=1e-2)
UNLEARNINGS = {
    "rmu": Unlearning(RMU(), HiddenMSE(), layer=2, lora=LORA),
    "npo": Unlearning(NPO(), LogitKL(), GaussianNoise(std=0.1), layer=2, lora=LORA),
    "simnpo": Unlearning(SimNPO(), LogitKL(), layer=2, lora=LORA, train_parameters="mlp.down_proj"),
}


def topic_for(unlearning: Unlearning) -> Topic:
    return STEERED if isinstance(unlearning.method, RMU) else UNSTEERED


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("name", ["rmu", "npo"])
def test_losses_and_gradients_equal_a_plain_adapted_model(kind: str, name: str) -> None:
    """Two whole models with hooks: the base, and one with factors away from their start."""
    unlearning = replace(UNLEARNINGS[name], train_layers=(1, 2))
    model = tiny_model(kind)
    reference = deepcopy(model)
    add_factors(model, modules_to_adapt(Decoder(model), unlearning), LORA, seed=1)
    updated = deepcopy(model).requires_grad_(False)
    rng = torch.Generator().manual_seed(2)
    weights = {}
    for key, factor in factors(updated).items():
        factor.data += 0.1 * torch.randn(factor.shape, generator=rng)
        weights[key] = factor.detach().clone().requires_grad_()
        factor.requires_grad_(True)
    ours = SharedPrefixStep(reference_for(Decoder(model), unlearning), unlearning, weights, seed=3)
    plain = PlainStep(updated, reference, unlearning, seed=3)
    objective, batch = objective_for(unlearning), step_batch()
    with frozen_model(model):
        losses = ours.backward(objective, batch, step=4)
    expected = plain.backward(objective, batch, step=4)
    for found, wanted in zip((losses.forget, losses.retain), expected, strict=True):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    for key, tensor in weights.items():
        wanted = updated.get_parameter(key).grad
        assert tensor.grad is not None
        assert wanted is not None
        assert relative_error(tensor.grad, wanted) < 1e-5


@pytest.fixture(params=UNLEARNINGS)
def result(
    request: pytest.FixtureRequest,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> Result:
    unlearning = UNLEARNINGS[request.param]
    return unlearn(tiny_llama, tiny_tokenizer, [topic_for(unlearning)], unlearning, TRAINING)


def test_the_caller_s_model_stays_as_it_was(
    result: Result, tiny_llama: PreTrainedModel, tiny_model_folder: Path
) -> None:
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    assert result.adapter is not None
    result.adapter.merge_and_unload()  # even merging what came of it
    names = dict(tiny_llama.named_parameters())
    assert names.keys() == dict(fresh.named_parameters()).keys()
    assert all(torch.equal(names[name], tensor) for name, tensor in fresh.named_parameters())
    assert all(tensor.requires_grad for tensor in tiny_llama.parameters())


def test_every_factor_moves_and_the_model_with_it(
    result: Result, tiny_llama: PreTrainedModel
) -> None:
    assert result.changed.keys() == factors(result.model).keys()
    assert all(tensor.abs().max() > 0 for tensor in result.changed.values())  # B has left 0
    with torch.no_grad():
        assert not torch.equal(result.model(IDS).logits, tiny_llama(IDS).logits)


def test_a_run_is_repeatable_and_leaves_torch_s_own_generator_alone(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    unlearning, before = UNLEARNINGS["rmu"], torch.get_rng_state()
    arguments = (tiny_llama, tiny_tokenizer, [STEERED], unlearning, TRAINING)
    first, second = unlearn(*arguments), unlearn(*arguments)
    other = unlearn(*arguments[:-1], replace(TRAINING, seed=7))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in first.changed.items():
        assert torch.equal(tensor, second.changed[name])
        assert not torch.equal(tensor, other.changed[name])


def test_the_first_losses_are_those_of_full_training(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    losses = []
    for lora in (LORA, None):
        unlearning = replace(UNLEARNINGS["npo"], lora=lora)
        found = unlearn(tiny_llama, tiny_tokenizer, [UNSTEERED], unlearning, TRAINING)
        losses.append((found.records[0].forget_loss, found.records[0].retain_loss))
    assert losses[0] == losses[1]


def test_a_tensor_that_no_loss_reaches_is_refused_before_the_first_update(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    Decoder(tiny_llama).blocks[2].register_parameter("unused", nn.Parameter(torch.ones(1)))
    unlearning = Unlearning(RMU(), layer=2, train_layers=[2], train_parameters="unused")
    with pytest.raises(UsageError, match=r"train: model\.layers\.2\.unused .* get no gradient"):
        unlearn(tiny_llama, tiny_tokenizer, [STEERED], unlearning, TRAINING)


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("forget.txt").write_text("\n".join(FORGET))
    Path("retain.txt").write_text("\n".join(RETAIN))
    text = f"""
model: {tiny_model_folder}
output: out
method: {{name: rmu}}
layer: 2
train: {{lora: {{rank: 2}}}}
topics: [{{name: t, forget: forget.txt, retain: retain.txt, coefficient: 3, weight: 2}}]
steps: 3
learning_rate: 1e-2
device: cpu
"""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


# peft 0.21 asks transformers 5 for a property by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_an_adapter_that_peft_loads(recipe: Path, tiny_model_folder: Path) -> None:
    record = run(check(load_recipe(recipe)))
    settings = json.loads(Path("out/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tiny_model_folder)
    assert (settings["r"], settings["lora_alpha"]) == (2, 32.0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    adapted = PeftModel.from_pretrained(base, "out").eval()
    assert len(record["changed"]) == 3 * 7 * 2  # blocks, linear modules of each, factors of each
    merged = load_model("out").model
    with torch.no_grad():
        assert torch.allclose(adapted(IDS).logits, merged(IDS).logits, atol=1e-5)
    assert not Path("out/model.safetensors").exists()


def test_a_merged_checkpoint_equals_the_adapter(recipe: Path, tiny_model_folder: Path) -> None:
    run(check(load_recipe(recipe)))
    run(check(load_recipe(recipe, ["train.lora.merge=true", "output=merged"])))
    one, other = load_model("out").model, AutoModelForCausalLM.from_pretrained("merged")
    for (name, tensor), (same, merged) in zip(
        one.named_parameters(), other.named_parameters(), strict=True
    ):
        assert name == same
        assert torch.allclose(tensor, merged, atol=1e-6)
    before = AutoModelForCausalLM.from_pretrained(tiny_model_folder).state_dict()
    changed = {n for n, t in other.state_dict().items() if not torch.equal(t, before[n])}
    assert len(changed) == 3 * 7


REFUSED = [
    ("train.lora.rank=0", "train.lora.rank: 0"),
    ("train.lora.rank=33", "train.lora.rank: 33 is more than the rank of .* can be: use 1 to "),
    ("train.lora.rank=1000000000", "train.lora.rank: 1000000000 is more"),
    ("train.lora.alpha=-1", "train.lora.alpha: -1"),
    ("train.parameters=input_layernorm", "matches no linear module in block 0, which LoRA needs"),
    ("train.lora.dropout=0.1", "has no field 'dropout'"),
]


@pytest.mark.parametrize(("override", "sentence"), REFUSED)
def test_what_cannot_be_is_refused(recipe: Path, override: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check(load_recipe(recipe, [override]))
