"""The module names of each family of decoders; a new family is a line in `ARCHITECTURES`."""

from collections.abc import Mapping
from dataclasses import dataclass

from defuse.utils.errors import UsageError


@dataclass(frozen=True)
class Architecture:
    """The modules of one family of models, as dotted paths from the causal model."""

    blocks: str = "model.layers"
    norm: str = "model.norm"
    rotary: str | None = "model.rotary_emb"
    rotary_per_type: bool = False  # Gemma 3: sliding and full layers have different bases
    positions: str | None = None  # a table of learnt positions, added to the embedding
    attention_output: str = "self_attn.o_proj"
    mlp_output: str = "mlp.down_proj"
    # Norms between the two outputs above and the residual stream.
    output_norms: tuple[str | None, str | None] = (None, None)
    cache_argument: str = "past_key_values"
    scaled_embedding: bool = False  # Gemma: times √hidden
    all_sliding: bool = False  # every layer slides if config.sliding_window is set


GEMMA_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(),
    "mistral": Architecture(all_sliding=True),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "gemma2": Architecture(scaled_embedding=True, output_norms=GEMMA_NORMS),
    "gemma3_text": Architecture(rotary_per_type=True, output_norms=GEMMA_NORMS),
    "phi3": Architecture(all_sliding=True),
    "gpt_neox": Architecture(
        blocks="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        rotary="gpt_neox.rotary_emb",
        attention_output="attention.dense",
        mlp_output="mlp.dense_4h_to_h",
        cache_argument="layer_past",
    ),
    "gpt2": Architecture(
        blocks="transformer.h",
        norm="transformer.ln_f",
        rotary=None,
        positions="transformer.wpe",
        attention_output="attn.c_proj",
        mlp_output="mlp.c_proj",
    ),
}


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a config's `model_type`. Raises UsageError, with those that work."""
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(f"model: architecture {model_type!r} is not supported; use one of {known}")
    return ARCHITECTURES[model_type]
