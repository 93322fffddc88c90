"""Models of which only the lower blocks are read: equal to the whole as far as they go."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

import defuse
from defuse import GaussianNoise, Topic, Training, Unlearning, UsageError, load_part
from defuse.methods import RMU, RSV, AdaptiveRMU, RepresentationMethod
from defuse.models.decoder import Decoder
from defuse.models.load import load_model
from defuse.models.locate import locate
from defuse.models.partial_load import find_checkpoint
from defuse.models.safetensors_index import INDEX, SINGLE, open_checkpoint
from defuse.models.save import save_model
from defuse.utils.provenance import fingerprint
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.models.test_load import write_gguf

BLOCK = "model.layers.1.mlp.down_proj.weight"


@torch.no_grad()
def hidden_states(model: PreTrainedModel, stop: int) -> torch.Tensor:
    decoder = Decoder(model)
    ids = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    hidden, inputs = decoder.embed(ids)
    return decoder.run(hidden, inputs, 0, stop)


def embedding_and_head(model: PreTrainedModel) -> tuple[nn.Parameter, nn.Parameter]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight  # type: ignore[union-attr, return-value]


def real(model: PreTrainedModel) -> set[str]:
    """The names of parameters that are there; tied ones by their first name."""
    return {name for name, parameter in model.named_parameters() if not parameter.is_meta}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_hidden_states_of_every_architecture_are_those_of_the_whole_model(
    kind, dtype, tmp_path, tiny_tokenizer
):
    save_model(tiny_model(kind, dtype=dtype), tiny_tokenizer, tmp_path / "model")
    whole = load_model(str(tmp_path / "model"), device="cpu").model
    part = load_part(str(tmp_path / "model"), 2, device="cpu").model
    assert torch.equal(hidden_states(part, 2), hidden_states(whole, 2))
    assert part.dtype == dtype
    assert not part.training
    above = [p for block in Decoder(part).blocks[2:] for p in block.parameters()]
    assert all(p.is_meta for p in above)
    embedding, head = embedding_and_head(part)
    assert not embedding.is_meta
    assert (head is embedding) == (len(set(embedding_and_head(whole))) == 1)
    assert head is embedding or head.is_meta


def test_files_of_the_blocks_above_need_not_be_there(sharded_model_folder):
    places = json.loads((sharded_model_folder / INDEX).read_text())["weight_map"]
    expected = hidden_states(load_model(str(sharded_model_folder), device="cpu").model, 2)
    lower = ("model.embed_tokens", "model.layers.0.", "model.layers.1.")
    needed = {file for name, file in places.items() if name.startswith(lower)}
    above = {file for file in places.values() if file not in needed}
    assert above
    for file in above:
        (sharded_model_folder / file).unlink()
    part = load_part(str(sharded_model_folder), 2, device="cpu").model
    assert torch.equal(hidden_states(part, 2), expected)
    assert {name.startswith(lower) for name in real(part)} == {True}


def test_a_model_in_a_hub_s_cache_is_read_in_part(hub_model, sharded_model_folder):
    part, folder = load_part(hub_model, 2, device="cpu"), load_part(str(sharded_model_folder), 2)
    assert real(part.model) == real(folder.model)
    assert torch.equal(hidden_states(part.model, 2), hidden_states(folder.model, 2))
    assert part.name == hub_model
    commit = open_checkpoint(hub_model).folder.name
    assert part.commit == load_model(hub_model, device="cpu").commit == commit
    assert folder.commit is None
    assert part.tokenizer("a cat")["input_ids"] == folder.tokenizer("a cat")["input_ids"]
    assert find_checkpoint(locate(hub_model)) is not None


def test_a_tied_embedding_may_go_by_the_head_s_name(tmp_path, tiny_tokenizer):
    folder = tmp_path / "model"
    save_model(tiny_model("llama"), tiny_tokenizer, folder)
    expected = hidden_states(load_model(str(folder), device="cpu").model, 2)
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    part = load_part(str(folder), 2, device="cpu").model
    assert torch.equal(hidden_states(part, 2), expected)
    embedding, head = embedding_and_head(part)
    assert head is embedding
    checkpoint = find_checkpoint(locate(str(folder)))
    assert checkpoint is not None
    names = ("model.embed_tokens.weight", "lm_head.weight")
    assert checkpoint.entries[names[0]] == checkpoint.entries[names[1]]


def test_another_number_type_than_the_files_is_cast_to(sharded_model_folder):
    part = load_part(str(sharded_model_folder), 2, device="cpu", dtype="float32").model
    whole = load_model(str(sharded_model_folder), device="cpu", dtype="float32").model
    assert part.dtype == torch.float32
    assert torch.equal(hidden_states(part, 2), hidden_states(whole, 2))
    assert find_checkpoint(locate(str(sharded_model_folder)), torch.float32) is None
    assert find_checkpoint(locate(str(sharded_model_folder)), torch.bfloat16) is not None


@pytest.fixture
def odd_folders(tmp_path, tiny_tokenizer, tiny_model_folder, tiny_adapter_folder) -> list[Path]:
    """Models that cannot be read tensor by tensor: GGUF, an adapter, old names, a stray head."""
    write_gguf(
        tmp_path / "gguf.gguf",
        load_model(str(tiny_model_folder), device="cpu").model,
        tiny_model_folder / "tokenizer.json",
    )
    save_model(tiny_model("gpt2"), tiny_tokenizer, tmp_path / "old")
    tensors = load_file(tmp_path / "old" / SINGLE)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "old" / SINGLE, {"format": "pt"})
    save_model(tiny_model("llama"), tiny_tokenizer, tmp_path / "stray")
    tensors = load_file(tmp_path / "stray" / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "stray" / SINGLE, {"format": "pt"})
    untyped = shutil.copytree(tiny_model_folder, tmp_path / "untyped")
    config = json.loads((untyped / "config.json").read_text())
    (untyped / "config.json").write_text(json.dumps(config | {"dtype": None}))
    return [
        tmp_path / "gguf.gguf",
        tiny_adapter_folder,
        tmp_path / "old",
        tmp_path / "stray",
        untyped,
    ]


def test_what_cannot_be_read_in_part_is_loaded_whole(odd_folders):
    for place in odd_folders:
        part = load_part(str(place), 2, device="cpu").model
        whole = load_model(str(place), device="cpu").model
        assert not any(parameter.is_meta for parameter in part.parameters()), place
        assert torch.equal(hidden_states(part, 4), hidden_states(whole, 4))
        assert find_checkpoint(locate(str(place))) is None


def test_quantised_weights_are_not_changed_tensor_by_tensor(tiny_model_folder, tmp_path):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    assert find_checkpoint(locate(str(folder))) is None


@pytest.mark.parametrize("stop", [0, -1, 5])
def test_a_number_of_blocks_that_cannot_be_is_refused(tiny_model_folder, stop):
    with pytest.raises(UsageError, match=f"stop: {stop} is not a number of this model's blocks"):
        load_part(str(tiny_model_folder), stop)


def test_broken_and_contradicting_files_are_refused(sharded_model_folder):
    places = json.loads((sharded_model_folder / INDEX).read_text())["weight_map"]
    (sharded_model_folder / places[BLOCK]).unlink()
    with pytest.raises(UsageError, match="is missing, but its index names it"):
        load_part(str(sharded_model_folder), 2)
    with pytest.raises(UsageError, match="is missing, but its index names it"):
        find_checkpoint(locate(str(sharded_model_folder)))


TOPIC = Topic(
    "cats",
    [f"The cat number {i} is bad." for i in range(4)],
    [f"I read about the moon, {i} times." for i in range(4)],
)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("method", [RMU(), AdaptiveRMU(), RSV()], ids=lambda method: method.name)
def test_unlearning_is_the_same_to_the_last_bit(
    sharded_model_folder, method: RepresentationMethod, in_place: bool
):
    unlearning = Unlearning(method, noise=GaussianNoise(std=0.1), layer=2)
    changed, left = [], []
    for loaded in (
        load_model(str(sharded_model_folder), device="cpu"),
        load_part(str(sharded_model_folder), 3, device="cpu"),
    ):
        training = Training(steps=3, batch_size=2, learning_rate=1e-2)
        result = defuse.unlearn(
            loaded.model, loaded.tokenizer, [TOPIC], unlearning, training, in_place=in_place
        )
        changed.append(result.changed)
        left.append(loaded.model.get_parameter(BLOCK))
    assert changed[0].keys() == changed[1].keys()
    for name, tensor in changed[0].items():
        assert torch.equal(tensor, changed[1][name])
    assert torch.equal(left[0], left[1])
    again = load_model(str(sharded_model_folder), device="cpu").model.get_parameter(BLOCK)
    assert torch.equal(again, left[0]) is not in_place  # files keep what training changed in memory


def test_an_objective_that_needs_what_was_not_read_is_refused(sharded_model_folder):
    part = load_part(str(sharded_model_folder), 2, device="cpu")
    topic = Topic("t", ["The virus is bad."], ["A cat sleeps."], coefficient=3.0, weight=1.0)
    with pytest.raises(UsageError, match="is loaded in part, but these losses need blocks 0 to 2"):
        defuse.unlearn(part.model, part.tokenizer, [topic], Unlearning(RMU(), layer=2))


def test_the_fingerprint_is_of_what_was_read(sharded_model_folder):
    folder = str(sharded_model_folder)
    two, again, three = (load_part(folder, stop, device="cpu").model for stop in (2, 2, 3))
    assert fingerprint(two) == fingerprint(again) != fingerprint(three)
