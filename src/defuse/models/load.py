"""Loading models and tokenizers from disk or the hub: safetensors and GGUF only."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME, logging
from transformers.utils.hub import cached_file

from defuse.models.adapters import (
    ADAPTER_CONFIG,
    TOKENIZER_CONFIG,
    check_fit,
    embedding_rows,
    merge,
    own_tokenizer,
)
from defuse.models.architectures import architecture_of
from defuse.models.gguf_config import complete_config
from defuse.models.gguf_header import read_header
from defuse.models.gguf_parts import joined
from defuse.models.locate import Source, hub_commit, locate
from defuse.models.safetensors_index import open_checkpoint
from defuse.models.settings_checks import (
    check_attention_types,
    check_config_file,
    check_count,
    check_sizes,
)
from defuse.models.tokenizer_checks import check_tokenizer_files
from defuse.utils.config import check_fields
from defuse.utils.errors import UsageError

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
# Settings with which weights are more than the tensors of the files.
MOST_REASON = 400  # characters of a library's message
NAMED_WEIGHTS = "transformers_weights"
SPECIAL = ("quantization_config", NAMED_WEIGHTS)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, its tokenizer and the name that was given for it.

    `commit`: the commit of a hub repository; None for local files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    commit: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def load_model(
    name: str, *, device: str = "auto", dtype: str = "auto", revision: str | None = None
) -> LoadedModel:
    """A causal language model and its tokenizer.

    `name`: a hub id (`revision`, or "id@revision", pins its commit), a local folder, a GGUF file or
    a folder with one, "package:NAME" for such a folder in an installed Python package, or a peft
    adapter, which is merged into its base model. `dtype` "auto" is the checkpoint's own, and
    float32 for GGUF. Raises UsageError for what cannot be loaded.
    """
    place, number_type = resolve_device(device), resolve_dtype(dtype)
    source = locate(name, revision)
    with loading(name):
        outline = _outline(source, number_type)
        tokenizer = load_tokenizer(source)
        model = _load_weights(source, type(outline), number_type, place)
        rows = embeddings(outline)
        if embeddings(model) != rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
        for adapter in source.adapters:
            model = merge(model, adapter)
    return LoadedModel(model.eval(), tokenizer, name, hub_commit(source))


def require_plain_weights(model: PreTrainedModel, field: str, remedy: str) -> None:
    """Raise UsageError, about `field`, for quantised weights, loaded or not."""
    packed = any(not tensor.is_floating_point() for tensor in model.parameters())
    if packed or getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(f"{field}: the model's weights are quantised already; {remedy}")


def load_outline(name: str, dtype: str = "auto", revision: str | None = None) -> LoadedModel:
    """`load_model` without memory for the weights, to check settings before loading.

    Raises UsageError for everything that can be seen in the files without reading weights.
    """
    number_type, source = resolve_dtype(dtype), locate(name, revision)
    with loading(name):
        model = _outline(source, number_type)
    return LoadedModel(model.eval(), load_tokenizer(source), name)


def load_config(source: Source) -> PreTrainedConfig:
    """The model's configuration, without its weights; its sizes are checked before it is built."""
    with loading(source.path):
        if source.gguf is not None:
            header = read_header(Path(source.path) / source.gguf)
            config = AutoConfig.from_pretrained(source.path, **source.arguments)
            return complete_config(config, header)
        check_config_file(_settings_file(source, "config.json"))
        config = AutoConfig.from_pretrained(source.path, **source.arguments)
    check_attention_types(config, source.path)
    return config


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer; for an adapter, its own one or its base model's."""
    own = own_tokenizer(source.adapters)
    place = source if own is None else Source(str(own))
    with loading(place.path):
        if place.gguf is None:
            check_tokenizer_files(
                _settings_file(place, TOKENIZER_CONFIG), _settings_file(place, "tokenizer.json")
            )
        return AutoTokenizer.from_pretrained(place.path, **place.arguments)


def _settings_file(source: Source, name: str) -> Path | None:
    """A file beside the weights, downloaded if need be; None if there is none."""
    if Path(source.path).is_dir():
        path = Path(source.path) / name
        return path if path.is_file() else None
    found = cached_file(
        source.path,
        name,
        revision=source.revision,
        _raise_exceptions_for_missing_entries=False,
    )
    return None if found is None else Path(found)


def skeleton(config: PreTrainedConfig, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
    """The model without memory for its weights, to check names, layers and precision."""
    given = {} if dtype == "auto" else {"dtype": dtype}
    with loading(config.name_or_path or config.model_type), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **given)
        model.tie_weights()  # early releases of transformers 5 do this when loading
    return model


def resolve_device(device: str) -> torch.device:
    """`auto` is the first available of cuda, mps, cpu. Raises UsageError for a missing device."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next((kind for kind, there in available.items() if there), "cpu"))
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", *available):
        raise UsageError(f"device: {device!r} is unknown; use auto, cpu, cuda or mps")
    if not available.get(place.type, True):
        raise UsageError(f"device: {device} is not available here; use auto or cpu")
    return place


def resolve_dtype(dtype: str) -> str | torch.dtype:
    """The torch dtype; `auto` (the checkpoint's own) stays. Raises UsageError for other names."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype: {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    return dtype if dtype == "auto" else getattr(torch, dtype)


def _outline(source: Source, dtype: str | torch.dtype) -> PreTrainedModel:
    """The model without memory for weights, in the size of its adapters' embeddings.

    Raises UsageError for local files that do not hold it, and for adapters that do not fit it.
    """
    config = load_config(source)
    architecture_of(config.model_type)
    model = skeleton(config, _number_type(source, dtype))
    if source.gguf is not None:
        path = Path(source.path) / source.gguf
        check_count(model, read_header(path).elements, str(path))
    elif Path(source.path).is_dir() and not getattr(config, NAMED_WEIGHTS, None):
        check_sizes(model, open_checkpoint(source.path, source.revision))
    if rows := embedding_rows(source.adapters, model):
        config.vocab_size = rows
        model = skeleton(config, _number_type(source, dtype))
    for adapter in source.adapters:
        check_fit(adapter, model)
    return model


def _number_type(source: Source, dtype: str | torch.dtype) -> str | torch.dtype:
    return torch.float32 if source.gguf is not None and dtype == "auto" else dtype


def _load_weights(
    source: Source, kind: type[PreTrainedModel], dtype: str | torch.dtype, device: torch.device
) -> PreTrainedModel:
    given: dict[str, Any] = {
        "config": load_config(source),
        "dtype": _number_type(source, dtype),
        "output_loading_info": True,
    }
    if source.gguf is not None:
        with joined(Path(source.path) / source.gguf) as whole:
            place = Source(str(whole.parent), gguf=whole.name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place.path, **given, **place.arguments
            )
    else:
        loaded = _read_safetensors(source, kind, given)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UsageError(
            f"model: {source.path} lacks {len(missing)} tensors, {missing[0]} among them; "
            "its files do not belong to its config.json"
        )
    drop_gguf_marks(model)
    model.name_or_path = model.config.name_or_path = source.path
    return model.to(device)


def _read_safetensors(
    source: Source, kind: type[PreTrainedModel], given: Mapping[str, Any]
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Read what the index names, and no other file: `from_pretrained` would look for more."""
    config = given["config"]
    from_pretrained: Any = kind.from_pretrained
    named = getattr(config, NAMED_WEIGHTS, None)
    checkpoint = None if named else open_checkpoint(source.path, source.revision)
    if checkpoint is None or getattr(config, "quantization_config", None):
        _refuse_beside_adapter(source)
        return from_pretrained(source.path, use_safetensors=True, **given, **source.arguments)
    tensors = checkpoint.load(checkpoint.entries)
    model, report = from_pretrained(None, state_dict=tensors, **given)
    if (checkpoint.folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model, report


def _refuse_beside_adapter(source: Source) -> None:
    """`from_pretrained` would read an adapter beside the weights on its own."""
    if (Path(source.path) / ADAPTER_CONFIG).is_file():
        raise UsageError(
            f"model: {source.path} holds quantised weights and an adapter; move the adapter into a "
            "folder of its own"
        )


def embeddings(model: PreTrainedModel) -> int:
    """The number of tokens that have an embedding."""
    found: Any = model.get_input_embeddings()
    return found.num_embeddings


def drop_gguf_marks(model: PreTrainedModel) -> None:
    """Drop the attributes of dequantised GGUF weights that would forbid saving."""
    if getattr(model, "quantization_method", None) != "gguf":
        return
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(mark, None)
    vars(model.config).pop("quantization_config", None)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn every error while a model's files are read into one sentence."""
    try:
        with quiet():
            yield
    except UsageError:
        raise
    except Exception as error:  # whatever a broken file makes of the libraries that read it
        # The reason may be in a later line than the first.
        reason = " ".join(str(error).split())[:MOST_REASON] or type(error).__name__
        raise UsageError(f"model: {name} cannot be loaded ({reason})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' messages and progress bars."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
