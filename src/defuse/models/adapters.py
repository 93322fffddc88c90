"""Adapters of peft: what their files hold, whether it fits the model, and merging them into it."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from defuse.models.safetensors_index import Entry, read_header
from defuse.models.settings_checks import read_object
from defuse.utils.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"
PREFIX = "base_model.model."  # of the model's own names, in an adapter's file


@dataclass(frozen=True)
class AdapterSettings:
    """The base model that an adapter names, and the revision."""

    base: str
    revision: str | None


def read_settings(folder: Path) -> AdapterSettings:
    """Read adapter_config.json. Raises UsageError for a kind that cannot be merged."""
    path = folder / ADAPTER_CONFIG
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UsageError(f"model: the adapter {folder} has no {ADAPTER_WEIGHTS}; save it again")
    settings = read_object(path)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base or "\0" in base:
        raise UsageError(f"model: {path} names no base model; save the adapter again")
    if revision is not None and not isinstance(revision, str):
        raise UsageError(f"model: {path}: revision: {revision!r} is no name; save it again")
    _check_kind(path, settings.get("peft_type"))
    return AdapterSettings(base, revision)


def _check_kind(path: Path, kind: object) -> None:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS

    known = {each.value: tuner for each, tuner in TUNERS.items()}
    if not (isinstance(kind, str) and hasattr(known.get(kind), "merge_and_unload")):
        raise UsageError(
            f"model: {path}: peft_type: {kind!r} cannot be merged into a model's weights; use an "
            "adapter that can, such as LORA"
        )


def own_tokenizer(adapters: Sequence[Path]) -> Path | None:
    """The last adapter's folder that has a tokenizer of its own."""
    return next((path for path in adapters[::-1] if (path / TOKENIZER_CONFIG).is_file()), None)


def embedding_rows(adapters: Sequence[Path], model: PreTrainedModel) -> int | None:
    """The number of embeddings that the adapters' own ones ask for; None if they have none.

    Raises UsageError for an adapter that has only one of embedding and head in a new size.
    """
    rows = None
    for folder in adapters:
        entries = read_header(folder / ADAPTER_WEIGHTS)
        names = _embedding_names(model)
        held = {name: entries[PREFIX + name] for name in names if PREFIX + name in entries}
        sizes = {entry.shape[0] for entry in held.values() if len(entry.shape) == 2}
        now = rows or model.get_input_embeddings().num_embeddings
        if not sizes or sizes == {now}:
            continue
        if len(sizes) > 1 or (len(held) < len(names) and not _is_tied(model)):
            raise UsageError(
                f"model: the adapter {folder} brings embeddings for {max(sizes)} tokens instead of "
                f"{now}, but not for all of {' and '.join(names)}; save it again with both"
            )
        if _is_tied(model) and _leaves_head_behind(folder, names):
            raise UsageError(
                f"model: the adapter {folder} brings embeddings for {max(sizes)} tokens instead of "
                f"{now}, but not the head that was tied to them; save it again with "
                "ensure_weight_tying"
            )
        (rows,) = sizes
    return rows


def _leaves_head_behind(folder: Path, names: Sequence[str]) -> bool:
    """Whether the embedding was trained as a copy, away from the head that was tied to it."""
    settings = read_object(folder / ADAPTER_CONFIG)
    copied = settings.get("modules_to_save") or []
    modules = [f".{name}".removesuffix(".weight") for name in names]
    is_copy = any(module.endswith(f".{name}") for module in modules for name in copied)
    return is_copy and not settings.get("ensure_weight_tying")


def _embedding_names(model: PreTrainedModel) -> list[str]:
    """The names of the embedding's and the head's weights."""
    wanted = _embedding_and_head(model)
    named = model.state_dict(keep_vars=True).items()
    return [name for name, tensor in named if any(tensor is each for each in wanted)]


def _is_tied(model: PreTrainedModel) -> bool:
    embedding, head = _embedding_and_head(model)
    return embedding is head


def _embedding_and_head(model: PreTrainedModel) -> tuple[object, object]:
    parts: tuple[Any, Any] = model.get_input_embeddings(), model.get_output_embeddings()
    return parts[0].weight, parts[1].weight


def check_fit(folder: Path, outline: PreTrainedModel) -> None:
    """Raise UsageError unless the adapter's tensors are those that its settings ask for.

    `outline` is the model without memory for weights, with as many embeddings as the adapter has.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    path = folder / ADAPTER_WEIGHTS
    entries = read_header(path)
    config = PeftConfig.from_pretrained(str(folder))
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True  # type: ignore[attr-defined] (read weights that are absent)
    with _quiet_peft(), torch.device("meta"):
        adapted = PeftModel(deepcopy(outline), config)
        wanted: Mapping[str, Any] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    _compare(path, entries, wanted, {PREFIX + name for name in _embedding_names(outline)})


def _compare(
    path: Path, entries: Mapping[str, Entry], wanted: Mapping[str, Any], embeddings: set[str]
) -> None:
    remedy = "use the base model that it was trained on, or save the adapter again"
    if not wanted or not entries:
        raise UsageError(f"model: {path} holds no tensor that fits its base model; {remedy}")
    for name, entry in entries.items():
        tensor = wanted.get(name)
        if tensor is None and name not in embeddings:
            raise UsageError(
                f"model: {path} holds {name}, which fits nothing in its base model as "
                f"{ADAPTER_CONFIG} adapts it; {remedy}"
            )
        if tensor is not None and entry.shape != tuple(tensor.shape):
            raise UsageError(
                f"model: {path} holds {name} in the shape {entry.shape}, but {ADAPTER_CONFIG} and "
                f"the base model ask for {tuple(tensor.shape)}; {remedy}"
            )
    if lacking := sorted(wanted.keys() - entries.keys()):
        raise UsageError(
            f"model: {path} lacks {len(lacking)} of the {len(wanted)} tensors that "
            f"{ADAPTER_CONFIG} asks for, {lacking[0]} among them; {remedy}"
        )


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add an adapter to `model`'s weights; returns the model."""
    from peft import PeftModel

    with _quiet_peft():
        adapted = PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device))
        merged: PreTrainedModel = adapted.merge_and_unload()  # type: ignore[operator]
    if not _is_tied(merged):
        # An adapter may bring an embedding of its own to a model whose head was tied to it.
        merged.config.tie_word_embeddings = False
    return merged


@contextmanager
def _quiet_peft() -> "Iterator[None]":
    with warnings.catch_warnings():
        # Of old names, and of tied weights and lacking tensors, which are seen to here.
        warnings.simplefilter("ignore")
        yield
