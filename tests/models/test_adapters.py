"""Adapters are read as they were trained, or refused with what does not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from defuse.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from defuse.models.file_identity import file_identity
from defuse.models.load import embeddings, load_model, load_outline
from defuse.models.locate import locate
from defuse.models.partial_load import load_part
from defuse.utils.errors import UsageError
from tests.conftest import build_tokenizer
from tests.helpers.architectures import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
IDS = torch.tensor([[1, 40, 41, 42, 43]])
ADDED = ["<|a|>", "<|b|>", "<|c|>"]


def adapted(base: PreTrainedModel, base_name: Path, folder: Path, **settings: Any) -> PeftModel:
    """Write a random LoRA adapter of `base` that names `base_name`; returns the adapted model."""
    known = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    config = LoraConfig(**(known | settings), init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    model.save_pretrained(str(folder), save_embedding_layers=False)
    edit(folder, base_model_name_or_path=str(base_name))
    return model  # type: ignore[return-value] (no mixed model)


def edit(folder: Path, **fields: Any) -> None:
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


def read_logits(name: Path) -> Tensor:
    return logits(load_model(str(name), device="cpu").model)


def base(folder: Path) -> PreTrainedModel:
    return LlamaForCausalLM.from_pretrained(folder).eval()


def refusal(name: Path) -> str:
    sentences = set()
    for read in (load_model, load_outline):
        with pytest.raises(UsageError) as refused:
            read(str(name))
        sentences.add(str(refused.value))
    (sentence,) = sentences  # the same before weights are read
    assert "\n" not in sentence
    return sentence


def test_adapters_over_adapters_are_applied_in_order(tmp_path, tiny_model_folder):
    torch.manual_seed(1)
    first = adapted(base(tiny_model_folder), tiny_model_folder, tmp_path / "first")
    once: PreTrainedModel = first.merge_and_unload()  # type: ignore[operator]
    second = adapted(once, tmp_path / "first", tmp_path / "second")
    source = locate(str(tmp_path / "second"))
    assert source.adapters == (tmp_path / "first", tmp_path / "second")
    assert source.path == str(tiny_model_folder)
    torch.testing.assert_close(read_logits(tmp_path / "second"), logits(second))
    assert not torch.allclose(read_logits(tmp_path / "first"), logits(second))
    before = file_identity(source)
    edit(tmp_path / "first", lora_alpha=3)
    assert file_identity(source) != before


def test_an_adapter_in_its_base_s_folder_is_read_with_it(tmp_path, tiny_model_folder):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "both")
    model = adapted(base(folder), folder, folder)
    torch.testing.assert_close(read_logits(folder), logits(model))


def save_with_tokens(
    folder: Path, *, tied: bool, **settings: Any
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Write a base, and an adapter with three more tokens; returns the adapted model."""
    base_model = tiny_model("llama", vocab_size=320, tie_word_embeddings=tied)
    base_model.save_pretrained(folder / "base")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "base")
    tokenizer.add_tokens(ADDED)
    base_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = adapted(base_model, folder / "base", folder / "adapter", **settings)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "embed" in name or "head" in name:
                tensor.add_(0.1)
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=tied)
    edit(folder / "adapter", base_model_name_or_path=str(folder / "base"))
    tokenizer.save_pretrained(folder / "adapter")
    return model, tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_come_with_their_tokenizer_and_embeddings(tmp_path, tied):
    names = None if tied else ["embed_tokens", "lm_head"]
    model, _ = save_with_tokens(tmp_path, tied=tied, modules_to_save=names)
    loaded = load_model(str(tmp_path / "adapter"), device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(model))
    assert loaded.tokenizer.convert_tokens_to_ids(ADDED) == [320, 321, 322]
    assert loaded.model.config.vocab_size == 323
    outline = load_outline(str(tmp_path / "adapter"))
    assert embeddings(outline.model) == 323
    assert outline.tokenizer.convert_tokens_to_ids(ADDED) == [320, 321, 322]
    loaded.model.save_pretrained(tmp_path / "whole")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(logits(again), logits(model))


def test_a_new_embedding_without_the_head_that_was_tied_to_it_is_refused(tmp_path):
    save_with_tokens(tmp_path, tied=True, modules_to_save=["embed_tokens"])
    assert "but not the head that was tied to them" in refusal(tmp_path / "adapter")


def test_an_embedding_of_its_own_unties_the_head(tmp_path):
    folder = tmp_path / "base"
    tiny_model("llama", vocab_size=320, tie_word_embeddings=True).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    model = adapted(base(folder), folder, tmp_path / "one", modules_to_save=["embed_tokens"])
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "modules_to_save" in name:
                tensor.add_(0.1)
    model.save_pretrained(str(tmp_path / "one"), save_embedding_layers=False)
    edit(tmp_path / "one", base_model_name_or_path=str(folder))
    loaded = load_model(str(tmp_path / "one"), device="cpu").model
    torch.testing.assert_close(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "whole")
    torch.testing.assert_close(read_logits_of(tmp_path / "whole"), logits(model))


def read_logits_of(folder: Path) -> Tensor:
    return logits(LlamaForCausalLM.from_pretrained(folder).eval())


def test_a_new_size_for_the_embedding_alone_is_refused(tmp_path, tiny_model_folder):
    folder = tmp_path / "adapter"
    model = base(tiny_model_folder)
    model.resize_token_embeddings(323, mean_resizing=False)
    adapted(model, tiny_model_folder, folder, modules_to_save=["embed_tokens"])
    assert "brings embeddings for 323 tokens instead of 320, but not for all" in refusal(folder)


def empty(_: dict[str, Tensor]) -> dict[str, Tensor]:
    return {}


def foreign(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace(".layers.", ".h."): tensor for k, tensor in tensors.items()}


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: tensor for k, tensor in tensors.items() if ".layers.0." in k}


def larger(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.cat([tensor, tensor]) for k, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (empty, "holds no tensor that fits"),
        (foreign, "fits nothing in its base model"),
        (half, "lacks 6 of the 8 tensors"),
        (larger, "in the shape (4, 32), but"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    tiny_adapter_folder: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    sentence: str,
):
    path = tiny_adapter_folder / ADAPTER_WEIGHTS
    save_file(change(load_file(path)), path, {"format": "pt"})
    assert sentence in refusal(tiny_adapter_folder)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"r": 10**9}, "ask for (1000000000, 32)"),
        ({"peft_type": "NONSENSE"}, "peft_type: 'NONSENSE' cannot be merged"),
        ({"peft_type": ["LORA"]}, "peft_type: ['LORA'] cannot be merged"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "gone/for/ever"}, "no such folder: gone/for/ever"),
        ({"revision": 3}, "revision: 3 is no name"),
        ({"target_modules": ["nowhere"]}, "cannot be loaded"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_field(
    tiny_adapter_folder: Path, fields: dict[str, Any], sentence: str
):
    edit(tiny_adapter_folder, **fields)
    assert sentence in refusal(tiny_adapter_folder)


def test_an_adapter_that_leads_to_itself_is_refused(tmp_path, tiny_adapter_folder):
    edit(tiny_adapter_folder, base_model_name_or_path=str(tiny_adapter_folder))
    assert "is the adapter itself; name its base model" in refusal(tiny_adapter_folder)
    other = shutil.copytree(tiny_adapter_folder, tmp_path / "other")
    edit(tiny_adapter_folder, base_model_name_or_path=str(other))
    assert "leads from adapter to adapter and to no model" in refusal(other)


@pytest.mark.parametrize("text", ["[]", "{", '"LORA"', "[" * 5000])
def test_a_configuration_that_is_no_object_is_refused(tiny_adapter_folder: Path, text: str):
    (tiny_adapter_folder / ADAPTER_CONFIG).write_text(text)
    assert f"{tiny_adapter_folder / ADAPTER_CONFIG}" in refusal(tiny_adapter_folder)


def test_kinds_that_cannot_be_merged_are_refused_by_their_name(tmp_path, tiny_model_folder):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(base(tiny_model_folder), config).save_pretrained(str(tmp_path / "adapter"))
    edit(tmp_path / "adapter", base_model_name_or_path=str(tiny_model_folder))
    assert "peft_type: 'PROMPT_TUNING' cannot be merged" in refusal(tmp_path / "adapter")


@pytest.mark.parametrize("kind", ["IA3Config", "LoHaConfig", "LoKrConfig", "AdaLoraConfig"])
def test_other_kinds_that_can_be_merged_are_read(kind, tmp_path, tiny_model_folder):
    import peft

    settings: dict[str, Any] = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    if kind == "IA3Config":
        settings |= {"feedforward_modules": []}
    if kind == "AdaLoraConfig":
        settings |= {"total_step": 10}
    model = get_peft_model(base(tiny_model_folder), getattr(peft, kind)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(str(tmp_path / "adapter"))
    edit(tmp_path / "adapter", base_model_name_or_path=str(tiny_model_folder))
    torch.testing.assert_close(read_logits(tmp_path / "adapter"), logits(model))


def test_an_adapter_is_never_read_in_part(tiny_adapter_folder: Path):
    part = load_part(str(tiny_adapter_folder), 2, device="cpu").model
    assert torch.equal(logits(part), read_logits(tiny_adapter_folder))
