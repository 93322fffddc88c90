"""The models that the benchmarks run: random Llamas of a given shape."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

SEED = 0


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes and a step's batch: `texts` of forget and of retain texts, `tokens` each.

    Attention heads have hidden / heads units; `kv_heads` of them have keys and values of their own.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    texts: int
    tokens: int

    @property
    def kv_width(self) -> int:
        """Units of a token's keys, or values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def block(self) -> int:
        """Elements of a block's matrices: queries and output, keys and values, the MLP's three."""
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        return attention + 3 * self.hidden * self.intermediate


SHAPES = {
    "short": Shape(8, 256, 768, 4, 4, 16384, texts=4, tokens=256),
    "narrow": Shape(32, 384, 1024, 6, 6, 4096, texts=4, tokens=256),
    "zephyr-7b": Shape(32, 4096, 14336, 32, 8, 32000, texts=4, tokens=512),
    # Zephyr's with all widths an eighth, for a CPU.
    "zephyr-eighth": Shape(32, 512, 1792, 4, 1, 4000, texts=4, tokens=256),
}


def random_model(
    shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32, positions: int = 4096
) -> PreTrainedModel:
    """A frozen Llama with random weights, made on the device in its dtype."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=positions,
        dtype=dtype,
    )
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)
