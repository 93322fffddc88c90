"""Checkpoints with a few tensors changed: equal to loading all, changing and saving all."""

import json
import resource
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from defuse.models.load import load_model
from defuse.models.locate import locate
from defuse.models.partial_load import find_checkpoint, load_part
from defuse.models.safetensors_index import INDEX, SINGLE
from defuse.models.save import save_changed, save_model
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.helpers.architectures import CONFIGS, tiny_model

NAMES = [name for name, _ in build_llama().named_parameters()]
DOWN = "model.layers.1.mlp.down_proj.weight"


def other_values(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(len(names))
    shapes = {name: model.get_parameter(name) for name in names}
    return {n: torch.randn(t.shape, generator=random).to(t.dtype) for n, t in shapes.items()}


def saved_whole(folder: Path, changed: Mapping[str, Tensor], target: Path) -> None:
    """The plain way: load everything, change, save everything."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        for name, tensor in changed.items():
            model.get_parameter(name).copy_(tensor)
    model.save_pretrained(target)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {k: t for path in folder.glob("*.safetensors") for k, t in load_file(path).items()}


def assert_equal_tensors(one: Path, other: Path) -> None:
    found, expected = tensors_of(one), tensors_of(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def assert_loads_completely(folder: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loaded[1].values())


@given(names=st.sets(st.sampled_from(NAMES)))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_tensors_changed_give_what_saving_everything_gives(
    names, sharded_model_folder, tmp_path
):
    changed = other_values(build_llama().bfloat16(), sorted(names))
    for folder in (tmp_path / "changed", tmp_path / "whole"):
        shutil.rmtree(folder, ignore_errors=True)
    before = tensors_of(sharded_model_folder)
    save_changed(str(sharded_model_folder), changed, tmp_path / "changed")
    saved_whole(sharded_model_folder, changed, tmp_path / "whole")
    assert_equal_tensors(tmp_path / "changed", tmp_path / "whole")
    assert_loads_completely(tmp_path / "changed")
    after = tensors_of(sharded_model_folder)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_single_file_of_every_architecture_is_changed_too(kind, tmp_path, tiny_tokenizer):
    model = tiny_model(kind)
    save_model(model, tiny_tokenizer, tmp_path / "old")
    changed = other_values(model, [name for name, _ in model.named_parameters()][1:9:3])
    save_changed(str(tmp_path / "old"), changed, tmp_path / "new")
    saved_whole(tmp_path / "old", changed, tmp_path / "whole")
    assert_equal_tensors(tmp_path / "new", tmp_path / "whole")
    assert_loads_completely(tmp_path / "new")


def test_a_tied_embedding_is_changed_by_either_of_its_names(tmp_path, tiny_tokenizer):
    model = tiny_model("llama")
    save_model(model, tiny_tokenizer, tmp_path / "old")
    (changed,) = other_values(model, ["model.embed_tokens.weight"]).values()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        save_changed(str(tmp_path / "old"), {name: changed}, tmp_path / name)
        again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(again.get_input_embeddings().weight, changed)
        assert torch.equal(again.get_output_embeddings().weight, changed)


def test_headers_stay_as_they_were_and_files_without_a_change_are_the_same_file(
    sharded_model_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("defuse.models.save.FICLONE", 0)  # a file system that cannot share blocks
    changed = other_values(build_llama().bfloat16(), [DOWN])
    save_changed(str(sharded_model_folder), changed, tmp_path / "new")
    places = json.loads((sharded_model_folder / INDEX).read_text())["weight_map"]
    for file in set(places.values()):
        old, new = sharded_model_folder / file, tmp_path / "new" / file
        with safe_open(old, "pt") as one, safe_open(new, "pt") as other:
            assert one.metadata() == other.metadata() == {"format": "pt"}
            assert one.offset_keys() == other.offset_keys()
        differs = old.read_bytes() != new.read_bytes()
        assert differs == (file == places[DOWN])
        assert differs != old.samefile(new)


def test_a_hub_s_cache_is_copied_not_linked(hub_model, tmp_path):
    changed = other_values(build_llama().bfloat16(), [DOWN])
    save_changed(hub_model, changed, tmp_path / "new")
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "new").iterdir())
    saved_whole(find_folder(hub_model), changed, tmp_path / "whole")
    assert_equal_tensors(tmp_path / "new", tmp_path / "whole")


def find_folder(name: str) -> Path:
    checkpoint = find_checkpoint(locate(name))
    assert checkpoint is not None
    return checkpoint.folder


def test_what_belongs_to_the_model_comes_along_and_nothing_else(sharded_model_folder, tmp_path):
    kept = ["LICENSE", "README.md", "generation_config.json", "chat_template.jinja", "merges.txt"]
    left = ["pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.gguf"]
    left += [".hidden.json", "trainer_state.json", "pytorch_model.bin.index.json", "modeling.py"]
    left += ["stray.safetensors", "notes.txt"]
    left += ["all_results.json", "eval_results.json", "train_results.json", "job.json"]
    for name in kept + left:
        (sharded_model_folder / name).write_text("{}")
    (sharded_model_folder / "checkpoint-5.json").mkdir()
    templates = sharded_model_folder / "additional_chat_templates"
    templates.mkdir()
    (templates / "tools.jinja").write_text("{{ messages }}")
    shards = {path.name for path in sharded_model_folder.glob("model-*")}
    save_changed(str(sharded_model_folder), {}, tmp_path / "new")
    found = {str(p.relative_to(tmp_path / "new")) for p in (tmp_path / "new").rglob("*.*")}
    assert found | {"LICENSE"} == shards | {*kept, INDEX} | {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "additional_chat_templates/tools.jinja",
    }
    for name in kept:
        old, new = sharded_model_folder / name, tmp_path / "new" / name
        assert new.read_bytes() == old.read_bytes()
        assert not new.samefile(old)


def test_an_index_that_is_not_used_is_left_behind(sharded_model_folder, tmp_path):
    build_llama().bfloat16().save_pretrained(tmp_path / "single")
    shutil.copy(tmp_path / "single" / SINGLE, sharded_model_folder)
    save_changed(str(sharded_model_folder), {}, tmp_path / "new")
    assert not (tmp_path / "new" / INDEX).exists()
    assert [path.name for path in (tmp_path / "new").glob("*.safetensors")] == [SINGLE]


def refusal(source: Path, changed: Mapping[str, Tensor], target: Path) -> str:
    with pytest.raises(UsageError) as refused:
        save_changed(str(source), changed, target)
    assert not target.exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_does_not_fit_is_refused_before_anything_is_written(sharded_model_folder, tmp_path):
    good = other_values(build_llama().bfloat16(), [DOWN])
    new = tmp_path / "new"
    said = refusal(sharded_model_folder, {DOWN: good[DOWN].float()}, new)
    assert "no safetensors with just these names and number types" in said
    assert "has no tensor model.stray" in refusal(
        sharded_model_folder, good | {"model.stray": good[DOWN]}, new
    )
    assert f"is not the shape of {DOWN}" in refusal(
        sharded_model_folder, {DOWN: good[DOWN].T.contiguous()}, new
    )
    norm = torch.ones(32)
    assert "is not the number type of model.norm.weight" in refusal(
        sharded_model_folder, good | {"model.norm.weight": norm}, new
    )


def test_a_checkpoint_of_mixed_number_types_is_not_changed_tensor_by_tensor(
    tiny_model_folder, tmp_path
):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "mixed")
    tensors = load_file(folder / SINGLE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    assert find_checkpoint(locate(str(folder))) is None


def test_saving_never_replaces_what_is_there(sharded_model_folder, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("precious")
    with pytest.raises(FileExistsError):
        save_changed(str(sharded_model_folder), {}, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine"]


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_oserror_and_leaves_nothing(sharded_model_folder, tmp_path):
    changed = other_values(build_llama().bfloat16(), [DOWN])
    before = sorted(path.name for path in tmp_path.iterdir())
    with little_room(20_000), pytest.raises(OSError, match="too large"):
        save_changed(str(sharded_model_folder), changed, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_changed_tensors_may_come_from_training_and_from_views(sharded_model_folder, tmp_path):
    model = build_llama().bfloat16()
    trained = model.get_parameter(DOWN)  # requires a gradient
    turned = torch.randn(trained.shape[::-1]).bfloat16().T  # is not contiguous
    for name, tensor in {"trained": trained, "turned": turned}.items():
        save_changed(str(sharded_model_folder), {DOWN: tensor}, tmp_path / name)
        again = load_model(str(tmp_path / name), device="cpu").model.get_parameter(DOWN)
        assert torch.equal(again, tensor)


def test_a_model_loaded_in_part_is_not_saved_whole(sharded_model_folder, tmp_path):
    part = load_part(str(sharded_model_folder), 2, device="cpu")
    with pytest.raises(UsageError, match="loaded in part; save its changed tensors"):
        save_model(part.model, part.tokenizer, tmp_path / "new")
    assert not (tmp_path / "new").exists()
