"""A tiny random model of every supported architecture, with its awkward parts switched on."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention"] * 2
WITHOUT_GROUPS = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "layer_types": MIXED},
    "qwen3": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": 5,
        "final_logit_softcapping": 0.5,
        "attn_logit_softcapping": 1.0,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 5, "layer_types": MIXED},
    "phi3": {"sliding_window": 5, "tie_word_embeddings": False},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 64,
        "resid_pdrop": 0.1,
    },
}


def tiny_model(
    kind: str,
    *,
    seed: int = 0,
    attention: str | None = None,
    dtype: torch.dtype = torch.float32,
    vocab_size: int = 61,
    **settings: Any,
) -> PreTrainedModel:
    """A random model of architecture `kind`: 4 layers, 32 hidden units."""
    torch.manual_seed(seed)
    base = {"gpt2": {}, "gpt_neox": WITHOUT_GROUPS}.get(kind, SMALL)
    sizes = base | CONFIGS[kind] | {"vocab_size": vocab_size} | settings
    config = AutoConfig.for_model(kind, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual start, so that attention and soft-caps matter.
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model.eval()
