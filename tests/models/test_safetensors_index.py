"""The table of a checkpoint's safetensors: where each tensor lies, and files that cannot be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file

from defuse.models.safetensors_index import INDEX, SINGLE, open_checkpoint
from defuse.utils.errors import UsageError

LOWEST, HIGHEST = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def index_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def write_index(folder: Path, places: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as refused:
        open_checkpoint(str(folder))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("folder", ["tiny_model_folder", "sharded_model_folder"])
def test_the_table_says_where_every_tensor_s_bytes_are(folder, request):
    checkpoint = open_checkpoint(str(request.getfixturevalue(folder)))
    tensors = {}
    for file in checkpoint.files:
        tensors |= load_file(checkpoint.folder / file)
    assert set(checkpoint.entries) == set(tensors)
    for name, entry in checkpoint.entries.items():
        found = (checkpoint.folder / entry.file).read_bytes()[entry.start : entry.stop]
        assert found == tensors[name].view(torch.uint8).numpy().tobytes()
        assert entry.shape == tuple(tensors[name].shape)
        assert entry.dtype == {torch.float32: "F32", torch.bfloat16: "BF16"}[tensors[name].dtype]


def test_tensors_are_those_of_the_files_and_writing_to_them_leaves_the_files(sharded_model_folder):
    checkpoint = open_checkpoint(str(sharded_model_folder))
    expected = load_file(sharded_model_folder / checkpoint.entries[LOWEST].file)[LOWEST]
    loaded = checkpoint.load([LOWEST, HIGHEST])
    assert torch.equal(loaded[LOWEST], expected)
    loaded[LOWEST].zero_()
    assert torch.equal(checkpoint.load([LOWEST])[LOWEST], expected)


def test_only_the_files_that_hold_what_is_wanted_are_opened(sharded_model_folder):
    wanted = index_of(sharded_model_folder)[LOWEST]
    for path in sharded_model_folder.glob("*.safetensors"):
        if path.name != wanted:
            path.unlink()
    checkpoint = open_checkpoint(str(sharded_model_folder), names=[LOWEST])
    assert checkpoint.files == [wanted]


def test_a_single_file_goes_before_an_index(sharded_model_folder, tiny_model_folder):
    shutil.copy(tiny_model_folder / SINGLE, sharded_model_folder)
    assert open_checkpoint(str(sharded_model_folder)).files == [SINGLE]


def test_missing_and_broken_files_are_refused(sharded_model_folder):
    path = sharded_model_folder / index_of(sharded_model_folder)[HIGHEST]
    whole = path.read_bytes()
    for part in (whole[:-1], whole[:100], b"", b"\xff" * 100, whole + b"more"):
        path.write_bytes(part)
        assert f"{path} is no whole safetensors file" in refusal(sharded_model_folder)
    path.unlink()
    assert f"{path} is missing, but its index names it" in refusal(sharded_model_folder)
    (sharded_model_folder / INDEX).unlink()
    assert f"neither {SINGLE} nor {INDEX}" in refusal(sharded_model_folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none_is_refused(sharded_model_folder, text):
    (sharded_model_folder / INDEX).write_text(text)
    assert f"{INDEX} is no index of tensors" in refusal(sharded_model_folder)


@pytest.mark.parametrize("place", ["../{}", "sub/{}", "/tmp/{}"])  # noqa: S108 (not used)
def test_an_index_that_leads_out_of_its_folder_is_refused(sharded_model_folder, place):
    places = index_of(sharded_model_folder)
    write_index(sharded_model_folder, {k: place.format(v) for k, v in places.items()})
    assert f"{INDEX} is no index of tensors" in refusal(sharded_model_folder)


def test_an_index_that_contradicts_its_files_is_refused(sharded_model_folder):
    places = index_of(sharded_model_folder)
    low, high = places[LOWEST], places[HIGHEST]
    write_index(sharded_model_folder, places | {"model.extra": low})
    assert f"{low} lacks model.extra, which {INDEX} puts there" in refusal(sharded_model_folder)
    write_index(sharded_model_folder, {k: v for k, v in places.items() if k != LOWEST})
    assert f"{low} has {LOWEST}, which {INDEX} does not" in refusal(sharded_model_folder)
    write_index(sharded_model_folder, places | {LOWEST: high})
    assert f"{low} has {LOWEST}, which {INDEX} does not" in refusal(sharded_model_folder)


def test_a_tensor_in_two_files_is_refused(sharded_model_folder):
    places = index_of(sharded_model_folder)
    other = sharded_model_folder / places[HIGHEST]
    save_file(load_file(other) | {LOWEST: torch.zeros(2)}, other)
    assert f"{other} has {LOWEST}, which {INDEX} does not put there" in refusal(
        sharded_model_folder
    )


def test_a_hub_s_cache_is_read_as_far_as_is_needed(hub_model, sharded_model_folder):
    whole = open_checkpoint(hub_model)
    assert whole.entries.keys() == index_of(sharded_model_folder).keys()
    wanted, other = (index_of(whole.folder)[name] for name in (LOWEST, HIGHEST))
    (whole.folder / other).unlink()
    assert open_checkpoint(hub_model, names=[LOWEST]).files == [wanted]
    with pytest.raises(UsageError, match=f"{other} is missing"):
        open_checkpoint(hub_model)


@pytest.mark.parametrize("pinned", [False, True])
def test_offline_a_licence_that_is_not_in_the_cache_does_not_matter(hub_model, pinned):
    """The cache knows of all files of the repository, as after `hf download`."""
    folder = open_checkpoint(hub_model).folder
    names = [path.name for path in folder.iterdir()] + ["LICENSE"]
    files = {name: {"size": 1, "blob_id": name} for name in names}
    listing = folder.parents[1] / "trees" / f"{folder.name}.json"
    listing.parent.mkdir()
    listing.write_text(json.dumps({"format_version": 1, "files": files}))
    revision = folder.name if pinned else None
    with pytest.raises((LocalEntryNotFoundError, OfflineModeIsEnabled)):
        snapshot_download(hub_model, revision=revision, allow_patterns="LICENSE*")
    assert open_checkpoint(hub_model, revision).folder == folder
