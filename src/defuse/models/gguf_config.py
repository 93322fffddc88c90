"""What a GGUF file says of its model and transformers leaves out: rotary scaling, windows, caps.

transformers reads only the base of the rotary frequencies. The rest is carried over into the
configuration here, or the file is refused: the model would compute something else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from defuse.models.architectures import ARCHITECTURES
from defuse.models.gguf_header import GGUFHeader
from defuse.models.gguf_parts import parts_of
from defuse.utils.errors import UsageError

# Tensors that divide the rotary frequencies: for all lengths (Llama 3), or for short and long ones.
ALWAYS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
HEAD = "output.weight"
HARMLESS = ("freq_base", "dimension_count", "scaling.finetuned", "scaling.type")
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def complete_config(config: PreTrainedConfig, header: GGUFHeader) -> PreTrainedConfig:
    """Add to `config`, in place, what the file says of it.

    Raises UsageError, naming the field, for what cannot be carried over.
    """
    # transformers looks for a head in the first of several parts only.
    config.tie_word_embeddings = HEAD not in header.tensors
    scaling = _scaling(config, header)
    if scaling is not None:
        own = getattr(config, "rope_parameters", None) or {}
        if any(isinstance(value, Mapping) for value in own.values()):
            raise _refusal(header, "rope.scaling.type", "rotary scaling")
        config.rope_parameters = {**own, **scaling}
    _carry_window(config, header)
    for cap in CAPS:
        value = header.own(cap)
        if value and not hasattr(config, cap):
            raise _refusal(header, cap, "soft cap")
        if value:
            setattr(config, cap, float(value))
    return config


def _scaling(config: PreTrainedConfig, header: GGUFHeader) -> dict[str, Any] | None:
    prefix = f"{header.architecture}.rope."
    given = {
        name.removeprefix(prefix): value
        for name, value in header.fields.items()
        if name.startswith(prefix) and name.removeprefix(prefix) not in HARMLESS
    }
    kind = header.own("rope.scaling.type") or ("linear" if "scale_linear" in given else "none")
    factor = given.pop("scaling.factor", given.pop("scale_linear", None))
    original = given.pop("scaling.original_context_length", None)
    attention = given.pop("scaling.attn_factor", None)
    if given:
        raise _refusal(header, f"rope.{next(iter(given))}", "rotary scaling")
    longest = config.max_position_embeddings
    if SHORT in header.tensors or LONG in header.tensors or ALWAYS in header.tensors:
        if kind not in ("none", "longrope"):
            raise _refusal(header, "rope.scaling.type", "rotary scaling with factors of its own")
        return _by_factors(header, longest, original, attention)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear" and factor:
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn" and factor and attention in (None, 1.0):
        start = int(original or longest / factor)
        known = {"factor": float(factor), "original_max_position_embeddings": start}
        return {"rope_type": "yarn", **known}
    raise _refusal(header, "rope.scaling.type", "rotary scaling")


def _by_factors(
    header: GGUFHeader, longest: int, original: int | None, attention: float | None
) -> dict[str, Any]:
    """Divided frequencies, in the words of longrope."""
    paths = parts_of(header.path)
    tensors = {k: v for p in paths for k, v in read_tensors(p, (ALWAYS, SHORT, LONG)).items()}
    if ALWAYS in tensors:
        short = long = tensors[ALWAYS]
        attention = 1.0
    else:
        short, long = tensors[SHORT], tensors[LONG]
    start = int(original or longest)
    known = {} if attention is None else {"attention_factor": float(attention)}
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "factor": max(1.0, longest / start),
        "original_max_position_embeddings": start,
        **known,
    }


def read_tensors(path: Path, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Small float32 tensors of a GGUF file."""
    from gguf import GGUFReader

    return {
        tensor.name: [float(value) for value in tensor.data.flatten()]
        for tensor in GGUFReader(path).tensors
        if tensor.name in names
    }


def _carry_window(config: PreTrainedConfig, header: GGUFHeader) -> None:
    window = header.own("attention.sliding_window")
    if not window or getattr(config, "sliding_window", None) == window:
        return
    architecture = ARCHITECTURES.get(config.model_type)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if architecture is None or not (architecture.all_sliding or slides):
        raise _refusal(header, "attention.sliding_window", "sliding attention")
    config.sliding_window = int(window)


def _refusal(header: GGUFHeader, field: str, what: str) -> UsageError:
    value = header.own(field)
    return UsageError(
        f"model: {header.path}: {header.architecture}.{field}: {value!r} is a kind of {what} that "
        "cannot be carried over from GGUF; use the model's safetensors files"
    )
