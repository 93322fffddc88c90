"""Partial loading: only the lower blocks of a model are read, the rest stays on meta."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from defuse.models.decoder import Decoder
from defuse.models.load import (
    SPECIAL,
    LoadedModel,
    load_config,
    load_model,
    load_tokenizer,
    loading,
    resolve_device,
    resolve_dtype,
    skeleton,
)
from defuse.models.locate import Source, hub_commit, locate
from defuse.models.safetensors_index import DTYPE_NAMES, Checkpoint, open_checkpoint
from defuse.utils.errors import require


def load_part(
    name: str,
    stop: int,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> LoadedModel:
    """`load_model` without the blocks from `stop` on, the final norm and the head.

    Embedding and blocks 0..stop-1 are memory-mapped, the rest is on the meta device. GGUF,
    adapters, quantised weights and files whose tensor names differ from the model's are loaded in
    full. Raises UsageError for what cannot be loaded, and for files that contradict each other.
    """
    place, number_type = resolve_device(device), resolve_dtype(dtype)
    source = locate(name, revision)
    with loading(name):
        model = _load_lower(source, stop, place, number_type)
        if model is not None:
            return LoadedModel(model.eval(), load_tokenizer(source), name, hub_commit(source))
    return load_model(name, device=device, dtype=dtype, revision=revision)


@contextmanager
def present(
    model: PreTrainedModel, checkpoint: Checkpoint | None, part: nn.Module
) -> Iterator[None]:
    """Hold the weights of `part` that `load_part` left out, read from the model's files.

    They are memory-mapped, and let go of at the end. Nothing happens for a part that is there.
    """
    absent = [(tensor, names) for tensor, names in _tensors(model, [part]) if tensor.is_meta]
    if not absent:
        yield
        return
    matched = None if checkpoint is None else _match(absent, checkpoint)
    assert matched is not None  # noqa: S101 (only whole checkpoints are loaded in part)
    assert checkpoint is not None  # noqa: S101
    _fill_buffers(model, part, model.device)
    _fill(model, matched, checkpoint, model.device)
    try:
        yield
    finally:
        state = {name: tensor for tensor, names in absent for name in names}
        model.load_state_dict(state, strict=False, assign=True)


def find_checkpoint(source: Source, dtype: str | torch.dtype = "auto") -> Checkpoint | None:
    """The files of `source`, if changed tensors can replace the old ones in them.

    None for GGUF, adapters and quantised weights, and where the names or shapes of embedding and
    blocks, or the number type of anything, are not those of the model in `dtype`. A hub id is
    downloaded. Raises UsageError for files that are missing or broken or contradict each other.
    """
    with loading(source.path):
        model = _plain_skeleton(source, dtype)
        if model is None:
            return None
        checkpoint = open_checkpoint(source.path, source.revision)
    decoder, entries = Decoder(model), checkpoint.entries
    matched = _match(_tensors(model, decoder.parts(decoder.num_layers)), checkpoint)
    types = {entries[name].dtype for name in model.state_dict() if name in entries}
    if matched is None or types != {DTYPE_NAMES.get(model.dtype)}:
        return None
    by_all_names = {name: entries[there] for name, there in matched.items()}
    return replace(checkpoint, entries={**entries, **by_all_names})


def _plain_skeleton(source: Source, dtype: str | torch.dtype) -> PreTrainedModel | None:
    """None unless weights are plain safetensors with the usual names and a stated number type."""
    config = load_config(source)
    plain = not any(getattr(config, field, None) for field in SPECIAL)
    if source.gguf or source.adapters or not plain or config.dtype is None:
        return None
    return skeleton(config, dtype)


def _load_lower(
    source: Source, stop: int, device: torch.device, dtype: str | torch.dtype
) -> PreTrainedModel | None:
    """The model up to block `stop` - 1; None if it has to be loaded in full."""
    model = _plain_skeleton(source, dtype)
    if model is None:
        return None
    decoder = Decoder(model)
    remedy = f"is not a number of this model's blocks: use 1 to {decoder.num_layers}"
    require(1 <= stop <= decoder.num_layers, "stop", stop, remedy)
    parts = decoder.parts(stop)
    tensors = _tensors(model, parts)
    names = {name for _, names in tensors for name in names}
    checkpoint = open_checkpoint(source.path, source.revision, names)
    matched = _match(tensors, checkpoint)
    if matched is None:
        return None
    for part in parts:
        _fill_buffers(model, part, device)
    _fill(model, matched, checkpoint, device)
    return model


def _tensors(model: PreTrainedModel, parts: Iterable[nn.Module]) -> list[tuple[Tensor, list[str]]]:
    """What a checkpoint holds of `parts`, with the names in `model`: several where tied."""
    wanted = {id(t) for part in parts for t in part.state_dict(keep_vars=True).values()}
    named: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in wanted:
            named.setdefault(id(tensor), (tensor, []))[1].append(name)
    return list(named.values())


def _match(
    tensors: Sequence[tuple[Tensor, Sequence[str]]], checkpoint: Checkpoint
) -> Mapping[str, str] | None:
    """The checkpoint's name for each of the model's.

    None unless every tensor is there once, under one of its names and in its own shape: else
    loading means more than reading (renaming, joining, a head that is not tied after all).
    """
    matched: dict[str, str] = {}
    for tensor, names in tensors:
        there = [name for name in names if name in checkpoint.entries]
        if len(there) != 1 or checkpoint.entries[there[0]].shape != tuple(tensor.shape):
            return None
        matched |= dict.fromkeys(names, there[0])
    return matched


def _fill_buffers(model: PreTrainedModel, part: nn.Module, device: torch.device) -> None:
    """Make rotary frequencies, scales and masks, which are in no file, as `from_pretrained` does.

    Parameters must be filled afterwards: this initialises them too.
    """
    for module in part.modules():
        buffers = dict(module.named_buffers(recurse=False))
        for name, buffer in buffers.items():
            setattr(module, name, torch.empty_like(buffer, device=device))
        if buffers:
            model._init_weights(module)


def _fill(
    model: PreTrainedModel, matched: Mapping[str, str], checkpoint: Checkpoint, device: torch.device
) -> None:
    types = {matched[name]: t.dtype for name, t in model.state_dict().items() if name in matched}
    tensors = {
        name: tensor.to(device, types[name]) for name, tensor in checkpoint.load(types).items()
    }
    state = {name: tensors[there] for name, there in matched.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
