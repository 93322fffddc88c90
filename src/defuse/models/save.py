"""Saving models: in full, or as their old files with a few changed tensors."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from defuse.models.load import drop_gguf_marks, quiet
from defuse.models.locate import locate
from defuse.models.partial_load import find_checkpoint
from defuse.models.safetensors_index import (
    AROUND,
    DTYPE_NAMES,
    INDEX,
    SINGLE,
    Checkpoint,
    Entry,
    leads_out,
)
from defuse.utils.errors import UsageError, caution, require
from defuse.utils.files import new_folder

if TYPE_CHECKING:
    from peft import PeftModel

FICLONE = 0x40049409  # Linux's request that one file share another's blocks


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a checkpoint that `from_pretrained` loads; the folder appears only when complete.

    Raises FileExistsError when `folder` already holds something, and UsageError for a model that is
    loaded in part (`save_changed` is for those).
    """
    with new_folder(folder) as temporary:
        write_model(model, tokenizer, temporary)


def save_changed(
    name: str, changed: Mapping[str, Tensor], folder: Path, *, revision: str | None = None
) -> None:
    """Write model `name` (folder or hub id) with the tensors `changed`, as in `unlearn`'s Result.

    Only files with a changed tensor are rewritten; the folder appears only when complete. Raises
    FileExistsError when `folder` already holds something, and UsageError for a model whose files
    cannot be changed tensor by tensor: GGUF, adapters, quantised, or in another number type.
    """
    dtype = next((tensor.dtype for tensor in changed.values()), "auto")
    checkpoint = find_checkpoint(locate(name, revision), dtype)
    if checkpoint is None:
        raise UsageError(
            f"model: the files of {name} are no safetensors with just these names and number types;"
            " load it in full and use save_model"
        )
    with new_folder(folder) as temporary:
        write_changed(checkpoint, changed, temporary)


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer into an existing folder; `model` is not changed."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError("model: is loaded in part; save its changed tensors with save_changed")
    plain: Any = copy(model)
    plain.config = deepcopy(model.config)
    plain.generation_config = _valid(model.generation_config)
    drop_gguf_marks(plain)
    with quiet():
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def write_adapter(
    adapter: "PeftModel",
    base: tuple[str, str | None],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Write LoRA's factors into an existing folder, as an adapter for this model and revision."""
    for config in adapter.peft_config.values():
        config.base_model_name_or_path, config.revision = base
    with quiet():
        # Embeddings are the base model's; peft would compare it with the hub to find out.
        adapter.save_pretrained(str(folder), save_embedding_layers=False)
        tokenizer.save_pretrained(folder)


def write_changed(checkpoint: Checkpoint, changed: Mapping[str, Tensor], folder: Path) -> None:
    """Write `checkpoint` with the tensors `changed` into an existing folder.

    Files beside the weights are copied. Weight files with a changed tensor are copied, and its
    bytes are overwritten; order, metadata and all other bytes stay the same. Other weight files
    share the old file's blocks, or are links to it (never into a hub's cache), or copies. Raises
    UsageError for a tensor that the checkpoint lacks or has in another shape or number type.
    """
    for name, tensor in changed.items():
        _check_fits(name, tensor, checkpoint)
    for path in _around(checkpoint):
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(checkpoint.folder / path, folder / path)
    places = [(checkpoint.entries[name], tensor) for name, tensor in changed.items()]
    for file in checkpoint.files:
        old, new = checkpoint.folder / file, folder / file
        inside = [(entry, tensor) for entry, tensor in places if entry.file == file]
        if inside:
            _copy(old, new)
            _overwrite(new, inside)
        else:
            _reuse(old, new)


def _check_fits(name: str, tensor: Tensor, checkpoint: Checkpoint) -> None:
    entry = checkpoint.entries.get(name)
    if entry is None:
        raise UsageError(f"changed: {checkpoint.folder} has no tensor {name}; give its own names")
    remedy = f"is not the shape of {name} in {checkpoint.folder}, {entry.shape}"
    require(tuple(tensor.shape) == entry.shape, "changed", tuple(tensor.shape), remedy)
    remedy = f"is not the number type of {name} in {checkpoint.folder}, {entry.dtype}; cast it"
    require(DTYPE_NAMES.get(tensor.dtype) == entry.dtype, "changed", tensor.dtype, remedy)


def _around(checkpoint: Checkpoint) -> Iterator[Path]:
    """The files beside the weights: configuration, tokenizer, licence."""
    folder = checkpoint.folder
    patterns = AROUND if SINGLE in checkpoint.files else (*AROUND, INDEX)
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        unwanted = path.name.startswith(".") or leads_out(path, folder)
        if path.is_file() and not unwanted:
            yield path.relative_to(folder)


def _overwrite(path: Path, tensors: Iterable[tuple[Entry, Tensor]]) -> None:
    with path.open("r+b") as file:
        for entry, tensor in tensors:
            file.seek(entry.start)
            file.write(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())


def _copy(source: Path, target: Path) -> None:
    if not _share_blocks(source, target):
        shutil.copyfile(source, target)


def _reuse(source: Path, target: Path) -> None:
    """Put `source` at `target`: as a copy that takes no space, else a hard link, else a copy.

    Files in a hub's cache are symbolic links. They are never linked, because editing the new file
    in place would change the cache, which all projects share.
    """
    if _share_blocks(source, target):
        return
    try:
        if not source.is_symlink():
            target.hardlink_to(source)
            return
    except OSError:  # another disk, or a file system without hard links
        pass
    shutil.copyfile(source, target)


def _share_blocks(source: Path, target: Path) -> bool:
    """Copy without using space, if the file system can (Btrfs, XFS); returns whether it did."""
    try:
        import fcntl

        with source.open("rb") as old, target.open("wb") as new:
            fcntl.ioctl(new, FICLONE, old.fileno())
    except (ImportError, OSError):  # Windows, and other file systems
        target.unlink(missing_ok=True)
        return False
    return True


def _valid(settings: GenerationConfig | None) -> GenerationConfig | None:
    """`settings` that can be saved; transformers reads more than it agrees to write.

    Many models set a temperature without sampling, which then becomes sampling. Other fields that
    do not go together, such as a length penalty without beams, are left out with a caution.
    """
    if settings is None or _can_be_saved(settings):
        return deepcopy(settings)
    sampling = deepcopy(settings)
    sampling.do_sample = True
    if _can_be_saved(sampling):
        return sampling
    kept = GenerationConfig()
    for field, value in settings.to_diff_dict().items():
        longer = deepcopy(kept)
        setattr(longer, field, value)
        if _can_be_saved(longer):
            kept = longer
        else:
            caution(
                f"generation_config.json: {field}: {value!r} is left out of the written model, "
                "because transformers does not save it"
            )
    return kept


def _can_be_saved(settings: GenerationConfig) -> bool:
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True
