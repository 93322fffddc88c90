"""Checks of config.json, before anything is built from it.

It may be a stranger's. A number in it must not make a library build a model of a billion layers.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from defuse.models.safetensors_index import Checkpoint
from defuse.utils.errors import UsageError, require
from defuse.utils.json_text import parse_json

MOST_BYTES = 10**8  # of a file of settings; the largest are tokenizers with some 40 MB
MOST_LAYERS = 1000
MOST = 10**9
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
SIZES = (
    *LAYERS,
    "vocab_size",
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "n_inner",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "n_positions",
    "sliding_window",
)
PACKED = 32  # weights that one element of a quantised tensor may hold
REMEDY = "download or save the model again"


def read_object(path: Path, what: str = "model") -> dict[str, Any]:
    """A JSON object. Raises UsageError, naming the file, for anything else."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"its {size:,} bytes are more than the {MOST_BYTES:,} of any model")
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{what}: {path} cannot be read as JSON ({error}); {REMEDY}") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise UsageError(f"{what}: {path} holds a {kind} instead of settings by name; {REMEDY}")
    return value


def check_config_file(path: Path | None) -> None:
    """Raise UsageError for sizes in config.json, if it is there, that no model has."""
    if path is None:
        return
    settings = read_object(path)
    for field in SIZES:
        value = settings.get(field)
        if value is None:
            continue
        most = MOST_LAYERS if field in LAYERS else MOST
        is_size = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        remedy = f"is no size of a model: it has to be 1 to {most}; {REMEDY}"
        require(is_size, f"model: {path}: {field}", value, remedy)


def check_attention_types(config: PreTrainedConfig, path: str) -> None:
    """Raise UsageError for sliding attention without the size of its window."""
    types = getattr(config, "layer_types", None) or ()
    if "sliding_attention" in types and getattr(config, "sliding_window", None) is None:
        raise UsageError(
            f"model: {path}: layer_types has sliding_attention, but sliding_window is missing from "
            f"config.json; {REMEDY}"
        )


def check_sizes(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Raise UsageError if `model`, without weights, is not as large as its files."""
    entries, folder = checkpoint.entries, checkpoint.folder
    if getattr(model.config, "quantization_config", None) is None:
        for name, tensor in model.state_dict().items():
            entry = entries.get(name)
            if entry is not None and entry.shape != tuple(tensor.shape):
                raise UsageError(
                    f"model: {folder} has {name} in the shape {entry.shape}, but its config.json "
                    f"({_field(model.config, tuple(tensor.shape), entry.shape)}) asks for "
                    f"{tuple(tensor.shape)}; {REMEDY}"
                )
        check_count(model, checkpoint.elements, str(folder), [*entries])
    else:
        check_count(model, PACKED * checkpoint.elements, str(folder), [*entries])


def check_count(model: PreTrainedModel, held: int, path: str, names: Collection[str] = ()) -> None:
    """Raise UsageError if `model`, without weights, needs more values than the `held` ones.

    `names`: the tensors of the files, if they have the model's own names.
    """
    parameters = dict(model.named_parameters())
    needed = sum(parameter.numel() for parameter in parameters.values())
    lacking = sorted(parameters.keys() - set(names))
    if needed <= held:
        return
    if names and len(lacking) < len(parameters):
        raise UsageError(
            f"model: {path} lacks {len(lacking)} tensors, {lacking[0]} among them; its files do "
            f"not belong to its config.json; {REMEDY}"
        )
    raise UsageError(
        f"model: {path} describes a model of {needed:,} weights, but its files hold at most "
        f"{held:,}; {REMEDY}"
    )


def _field(config: PreTrainedConfig, asked: tuple[int, ...], held: tuple[int, ...]) -> str:
    """The field of the configuration that asks for another size than the file has."""
    sizes = set(asked) - set(held)
    found = (f"{field}: {getattr(config, field, None)}" for field in SIZES)
    own = (text for text in found if text.rpartition(" ")[2] in {str(size) for size in sizes})
    return next(own, "its sizes")
