"""Loading models and tokenizers from disk or the hub: safetensors and GGUF only."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.peft_utils import find_adapter_config_file

from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, its tokenizer and the name that was given for it.

    `commit`: the commit of a hub repository; None for local files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    commit: str | None = None


@dataclass(frozen=True)
class Source:
    """A model's files: a folder or hub id, perhaps a GGUF file in it, perhaps an adapter for it."""

    path: str
    revision: str | None = None
    gguf: str | None = None
    adapter: Path | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `from_pretrained`; code from the hub is never run."""
        arguments = {"revision": self.revision, "gguf_file": self.gguf}
        given = {key: value for key, value in arguments.items() if value is not None}
        return {"trust_remote_code": False, **given}


def load_model(
    name: str, *, device: str = "auto", dtype: str = "auto", revision: str | None = None
) -> LoadedModel:
    """A causal language model and its tokenizer.

    `name`: a hub id (`revision`, or "id@revision", pins its commit), a local folder, a GGUF file or
    a folder with one, or a peft adapter, which is merged into its base model. `dtype` "auto" is the
    checkpoint's own, and float32 for GGUF. Raises UsageError for what cannot be loaded.
    """
    place, number_type = resolve_device(device), resolve_dtype(dtype)
    source = locate(name, revision)
    with loading(name):
        tokenizer = load_tokenizer(source)
        model = _load_weights(source, number_type, place)
        if source.adapter is not None:
            model = _merged(model, source.adapter)
    return LoadedModel(model.eval(), tokenizer, name, hub_commit(source))


def require_plain_weights(model: PreTrainedModel, field: str, remedy: str) -> None:
    """Raise UsageError, about `field`, for quantised weights, loaded or not."""
    packed = any(not tensor.is_floating_point() for tensor in model.parameters())
    if packed or getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(f"{field}: the model's weights are quantised already; {remedy}")


def load_outline(name: str, dtype: str = "auto") -> LoadedModel:
    """`load_model` without memory for the weights, to check settings before loading.

    For an adapter it is its base model's.
    """
    number_type, source = resolve_dtype(dtype), locate(name)
    if source.gguf is not None and dtype == "auto":
        number_type = torch.float32
    model = skeleton(load_config(source), number_type)
    return LoadedModel(model.eval(), load_tokenizer(source), name)


def locate(name: str, revision: str | None = None) -> Source:
    """The files that `name` means, found before any weights are read.

    Raises UsageError for a place without a model, or with weights of other kinds.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _locate_folder(path)
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path)
    if path.exists():
        raise UsageError(f"model: {name} is no model; give a folder, a .gguf file or a hub id")
    name, _, pinned = name.partition("@")
    revision = pinned or revision
    if path.suffix == ".gguf" or not HUB_ID.fullmatch(name):
        raise UsageError(f"model: {name} does not exist; give a folder, a .gguf file or a hub id")
    with loading(name):
        if find_adapter_config_file(name, revision=revision) is None:
            return Source(name, revision)
        files = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        return _adapter(Path(snapshot_download(name, revision=revision, allow_patterns=files)))


def hub_commit(source: Source) -> str | None:
    """The commit of a hub repository's downloaded files; None for local files."""
    if Path(source.path).is_dir():
        return None
    config = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
    return Path(config).parent.name if isinstance(config, str) else None


def load_config(source: Source) -> PreTrainedConfig:
    """The model's configuration, without its weights."""
    with loading(source.path):
        return AutoConfig.from_pretrained(source.path, **source.arguments)


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer; for an adapter, its base model's."""
    with loading(source.path):
        return AutoTokenizer.from_pretrained(source.path, **source.arguments)


def skeleton(config: PreTrainedConfig, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
    """The model without memory for its weights, to check names, layers and precision."""
    given = {} if dtype == "auto" else {"dtype": dtype}
    with loading(config.model_type), torch.device("meta"):
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


def _locate_folder(path: Path) -> Source:
    if (path / ADAPTER_CONFIG).is_file():
        return _adapter(path)
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return Source(str(path))
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"model: {path} holds several GGUF files; name one of {names}")
    if files:
        return _gguf(files[0])
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        raise UsageError(
            f"model: {path} has its weights in pickle files, which can run code when read; "
            "convert them with save_pretrained, which writes safetensors"
        )
    raise UsageError(
        f"model: {path} holds no model; it needs config.json with .safetensors files, or a .gguf"
    )


def _gguf(path: Path) -> Source:
    if find_spec("gguf") is None:
        raise UsageError(f"model: {path} needs the gguf package; {install_hint('gguf')}")
    return Source(str(path.parent), gguf=path.name)


def _adapter(path: Path) -> Source:
    if find_spec("peft") is None:
        raise UsageError(f"model: {path} is an adapter; {install_hint('peft')} to read it")
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise UsageError(f"model: the adapter {path} has no {ADAPTER_WEIGHTS}; save it again")
    try:
        settings = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (ValueError, KeyError) as error:
        raise UsageError(f"model: {path / ADAPTER_CONFIG} names no base model") from error
    return replace(locate(str(base), revision), adapter=path)


def _load_weights(
    source: Source, dtype: str | torch.dtype, device: torch.device
) -> PreTrainedModel:
    if source.gguf is not None and dtype == "auto":
        dtype = torch.float32
    kind = {} if source.gguf is not None else {"use_safetensors": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.path, dtype=dtype, output_loading_info=True, **kind, **source.arguments
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UsageError(
            f"model: {source.path} lacks {len(missing)} tensors, {missing[0]} among them; "
            "its files do not belong to its config.json"
        )
    drop_gguf_marks(model)
    return model.to(device)


def drop_gguf_marks(model: PreTrainedModel) -> None:
    """Drop the attributes of dequantised GGUF weights that would forbid saving."""
    if getattr(model, "quantization_method", None) != "gguf":
        return
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(mark, None)
    vars(model.config).pop("quantization_config", None)


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    from peft import PeftModel

    with warnings.catch_warnings():
        # peft 0.21 uses the old name of a property of transformers 5.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn every error while a model's files are read into one sentence."""
    try:
        with quiet():
            yield
    except UsageError:
        raise
    except Exception as error:  # whatever a broken file makes of the libraries that read it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
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
