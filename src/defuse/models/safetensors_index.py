"""A table of a checkpoint's safetensors: file, place, number type and shape of each tensor.

Only headers are read to make the table. Tensors are memory-mapped, so they take memory only when
and as far as they are used.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from torch import Tensor

from defuse.utils.errors import UsageError
from defuse.utils.json_text import parse_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = ".safetensors"
# What is read beside the weights; nothing in it is code.
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.tiktoken",
)
# What is copied beside the weights: the model card says where the model comes from.
AROUND = (*SETTINGS, "LICENSE*", "NOTICE*", "README.md")
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: safetensors' name of its number type, its shape, its bytes' place."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder's tensors by name."""

    folder: Path
    entries: Mapping[str, Entry]

    @property
    def elements(self) -> int:
        """The number of values in all tensors."""
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    @property
    def files(self) -> list[str]:
        return sorted({entry.file for entry in self.entries.values()})

    def load(self, names: Collection[str]) -> dict[str, Tensor]:
        """These tensors, memory-mapped on the CPU; writing to them does not change the files."""
        tensors: dict[str, Tensor] = {}
        for file in sorted({self.entries[name].file for name in names}):
            with safe_open(self.folder / file, "pt") as opened:
                inside = [name for name in names if self.entries[name].file == file]
                tensors |= {name: opened.get_tensor(name) for name in inside}
        return tensors


def open_checkpoint(
    place: str, revision: str | None = None, names: Collection[str] | None = None
) -> Checkpoint:
    """The table of a folder or hub id; `names`: only the files that hold one of these tensors.

    From the hub, those files and the ones beside the weights are downloaded. Raises UsageError for
    a missing or broken file, and for an index that contradicts its files.
    """
    folder = Path(place)
    if not folder.is_dir():
        folder = _download(place, revision, names)
    if (folder / SINGLE).is_file():  # goes before an index, as in `from_pretrained`
        return Checkpoint(folder, read_header(folder / SINGLE))
    places = _read_index(folder)
    entries: dict[str, Entry] = {}
    for file in _files_with(names, places):
        found = read_header(folder / file)
        _check_agreement(folder / file, found, places)
        entries |= found
    return Checkpoint(folder, entries)


def _download(name: str, revision: str | None, names: Collection[str] | None) -> Path:
    folder = _snapshot(name, revision, [*AROUND, SINGLE, INDEX])
    if (folder / SINGLE).is_file():
        return folder
    files = _files_with(names, _read_index(folder))
    # By its commit, so that both downloads belong to the same commit.
    return _snapshot(name, folder.name, files)


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        # Offline, and a file is not cached: perhaps only a licence. Weights are checked later.
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(config, str):
            raise
        return Path(config).parent


def _files_with(names: Collection[str] | None, places: Mapping[str, str]) -> list[str]:
    return sorted({file for name, file in places.items() if names is None or name in names})


def _read_index(folder: Path) -> Mapping[str, str]:
    """The file of each tensor, by the folder's index."""
    path = folder / INDEX
    if not path.is_file():
        raise UsageError(f"model: {folder} has neither {SINGLE} nor {INDEX}; save the model again")
    try:
        places = parse_json(path.read_text(encoding="utf-8"))["weight_map"]
        # A name with a folder in it could lead anywhere, even when a copy is written.
        named = all(Path(file).name == file for file in places.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        named, places = False, {}
    if not named:
        raise UsageError(f"model: {path} is no index of tensors; download or save the model again")
    for file in places.values():
        if not file.endswith(WEIGHTS):
            raise UsageError(
                f"model: {path} names {file}, which is no {WEIGHTS} file and may run code when "
                "read; convert it with save_pretrained, which writes safetensors"
            )
    return places


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a file is a link out of its model's folder; blobs of a hub's cache belong to it."""
    target, home = path.resolve(), folder.resolve()
    own = [home]
    if home.parent.name == "snapshots":
        own.append(home.parent.parent / "blobs")
    return not any(target.is_relative_to(place) for place in own)


def read_header(path: Path) -> dict[str, Entry]:
    """The table of one file. Raises UsageError for a missing or broken one."""
    if not path.is_file():
        raise UsageError(f"model: {path} is missing, but its index names it; download it again")
    try:
        with safe_open(path, "pt"), path.open("rb") as file:  # safe_open checks it against the size
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(length))
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"model: {path} is no whole safetensors file ({error}); download or save it again"
        ) from error
    header.pop("__metadata__", None)
    first = 8 + length
    return {
        name: Entry(
            path.name,
            facts["dtype"],
            tuple(facts["shape"]),
            *(first + at for at in facts["data_offsets"]),
        )
        for name, facts in header.items()
    }


def _check_agreement(path: Path, found: Collection[str], places: Mapping[str, str]) -> None:
    expected = {name for name, file in places.items() if file == path.name}
    remedy = "download or save the model again"
    if lacking := sorted(expected - set(found)):
        raise UsageError(f"model: {path} lacks {lacking[0]}, which {INDEX} puts there; {remedy}")
    if strange := sorted(set(found) - expected):
        raise UsageError(
            f"model: {path} has {strange[0]}, which {INDEX} does not put there; {remedy}"
        )
