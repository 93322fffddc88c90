"""GGUF files: the header's bounds, and settings that transformers leaves out."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from defuse.models.file_identity import file_identity
from defuse.models.gguf_header import LongArray, read_header
from defuse.models.load import load_model, load_outline
from defuse.models.locate import locate
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.models.test_load import write_gguf

IDS = torch.randint(3, 300, (1, 60), generator=torch.Generator().manual_seed(1))
FACTORS = [1.0, 2.0, 4.0, 8.0]
Add = Callable[[gguf.GGUFWriter], object]


@pytest.fixture
def write(tmp_path: Path, tiny_model_folder: Path) -> Callable[..., Path]:
    """Write the tiny Llama with more in it."""

    def written(more: Add = lambda _: None) -> Path:
        path = tmp_path / "tiny.gguf"
        write_gguf(path, build_llama(), tiny_model_folder / "tokenizer.json", more)
        return path

    return written


def scaled(**rope: Any) -> PreTrainedModel:
    plain = build_llama()
    settings = plain.config.to_dict() | {"rope_parameters": {"rope_theta": 10000.0, **rope}}
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings)).eval()
    model.load_state_dict(plain.state_dict())
    return model


def linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(128)


def llama3(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.array(FACTORS, dtype=np.float32))


def longrope(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_factors_short.weight", np.ones(4, dtype=np.float32))
    writer.add_tensor("rope_factors_long.weight", np.array(FACTORS, dtype=np.float32))
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_attn_factors(1.25)


SCALINGS: dict[str, tuple[Add, dict[str, Any]]] = {
    "default": (lambda _: None, {"rope_type": "default"}),
    "linear": (linear, {"rope_type": "linear", "factor": 4.0}),
    "yarn": (yarn, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
    "llama3": (
        llama3,
        {
            "rope_type": "longrope",
            "short_factor": FACTORS,
            "long_factor": FACTORS,
            "attention_factor": 1.0,
            "original_max_position_embeddings": 512,
        },
    ),
    "longrope": (
        longrope,
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": FACTORS,
            "attention_factor": 1.25,
            "original_max_position_embeddings": 32,
        },
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("length", [20, 60])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotary_scaling_is_carried_over(write, scaling: str, length: int):
    more, rope = SCALINGS[scaling]
    loaded = load_model(str(write(more)), device="cpu").model
    ids = IDS[:, :length]
    torch.testing.assert_close(loaded(ids).logits, scaled(**rope)(ids).logits, rtol=1e-4, atol=1e-4)
    if scaling != "default":
        assert not torch.allclose(loaded(ids).logits, build_llama()(ids).logits, atol=1e-3) or (
            scaling == "longrope" and length < 32
        )


@pytest.mark.parametrize(
    ("add", "field"),
    [
        (lambda w: w.add_string("llama.rope.scaling.type", "spiral"), "rope.scaling.type"),
        (lambda w: w.add_float32("llama.rope.scaling.warp", 2.0), "rope.scaling.warp"),
        (lambda w: w.add_sliding_window(8), "attention.sliding_window"),
        (lambda w: w.add_final_logit_softcapping(3.0), "final_logit_softcapping"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_field(write, add: Add, field: str):
    assert f"llama.{field}" in refusal(write(add))


def refusal(path: Path) -> str:
    for read in (load_outline, load_model):
        with pytest.raises(UsageError) as refused:
            read(str(path))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_header_has_fields_and_shapes(write):
    header = read_header(write())
    assert header.own("block_count") == 4
    assert header.tensors["token_embd.weight"] == (32, 320)
    assert header.fields["tokenizer.ggml.tokens"] == LongArray(320)
    assert header.elements == sum(p.numel() for p in build_llama().parameters())


def with_number(path: Path, field: str, value: int) -> Path:
    """Overwrite a number of four bytes in the file."""
    raw, name = bytearray(path.read_bytes()), field.encode()
    at = raw.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4
    raw[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("llama.block_count", 10**9),
        ("llama.block_count", 0),
        ("llama.embedding_length", 4 * 10**9),
        ("llama.feed_forward_length", 10**9),
        ("llama.vocab_size", 10**9),
    ],
)
def test_sizes_that_are_not_the_file_s_are_refused(write, field: str, value: int):
    path = with_number(write(), field, value)
    assert str(path) in refusal(path)


def test_cut_and_foreign_files_are_refused(write):
    path = write()
    whole = path.read_bytes()
    end = whole.index(b"blk.0")
    for part in (b"", b"GGUF", whole[:20], whole[: end // 2], b"PK" + whole):
        path.write_bytes(part)
        assert f"{path} is no whole GGUF file" in refusal(path)
    for count in (2**63, 10**9):  # tensors, then fields
        for at in (8, 16):
            raw = bytearray(whole)
            raw[at : at + 8] = struct.pack("<Q", count)
            path.write_bytes(raw)
            assert f"{path} is no whole GGUF file" in refusal(path)


def in_parts(path: Path, count: int = 2) -> list[Path]:
    """Write a file's tensors in turn into `count` files; fields are in the first, as usual."""
    reader, paths = gguf.GGUFReader(path), []
    for number in range(count):
        paths.append(path.with_name(f"m-{number + 1:05}-of-{count:05}.gguf"))
        writer = gguf.GGUFWriter(paths[-1], "llama")
        fields = reader.fields.values() if number == 0 else ()
        for field in fields:
            if not field.name.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(
                    field.name, field.contents(), field.types[0], sub_type=field.types[-1]
                )
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        for tensor in list(reader.tensors)[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    path.unlink()
    return paths


@pytest.mark.parametrize("count", [2, 3])
def test_a_model_in_parts_is_the_whole_one(write, count: int):
    path = write(llama3)
    whole = load_model(str(path), device="cpu")
    parts = in_parts(path, count)
    for name in (*parts, parts[0].parent):
        loaded = load_model(str(name), device="cpu")
        assert torch.equal(loaded.model(IDS).logits, whole.model(IDS).logits)
        assert loaded.tokenizer("a cat")["input_ids"] == whole.tokenizer("a cat")["input_ids"]
    before = file_identity(locate(str(parts[0])))
    parts[-1].write_bytes(parts[-1].read_bytes() + b"0")
    assert file_identity(locate(str(parts[0])))["weights"] != before["weights"]


def test_a_part_that_is_missing_or_misnamed_is_refused(write):
    first, second = in_parts(write())
    second.rename(second.with_name("other.gguf"))
    assert f"{second} is missing; {first.name} needs all 2 parts" in refusal(first)
    assert "other.gguf calls itself part 2 of 2, and not 1 of 1" in refusal(
        second.with_name("other.gguf")
    )


def test_names_with_dots_are_files(write, tmp_path: Path):
    path = write().rename(tmp_path / "tiny.v1.Q8_0.gguf")
    load_outline(str(path))
