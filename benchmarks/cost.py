"""What an unlearning step has to compute and to keep, counted by hand: no tensor is made.

A token's way through a block costs 2·P + 4·T·d floating-point operations: P elements of the
block's matrices, T tokens of the text, d hidden units. Attention is counted whole, though its
kernels may leave out the half that lies ahead. The way back costs the same again for every matrix,
twice the attention, and 2·n for the gradient of a trained matrix of n elements; it ends at the
first trained matrix. The head costs 2·d·V each way. What is run twice to save memory counts once.

`plain` is two whole models: every pass goes through all layers and the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.shapes import Shape
from defuse.methods import HiddenMSE, RepresentationMethod
from defuse.unlearning.config import Unlearning


@dataclass(frozen=True)
class Part:
    """One kind of texts: does the loss look at logits, does the reference see them too."""

    logits: bool
    reference: bool


def parts_of(unlearning: Unlearning) -> Sequence[Part]:
    """The forget, the retain and, where the method has some, the refusal texts."""
    method = unlearning.method
    hidden = isinstance(method, RepresentationMethod)
    forget = Part(logits=not hidden, reference=method.needs_reference)
    retain = Part(logits=not isinstance(unlearning.retain, HiddenMSE), reference=True)
    refusals = [Part(logits=True, reference=True)] if hasattr(method, "refusals") else []
    return [forget, retain, *refusals]


def step_flops(shape: Shape, unlearning: Unlearning, *, plain: bool) -> int:
    """Floating-point operations of one step on either side, `mlp.down_proj` trained."""
    count = _plain_part if plain else _shared_part
    return sum(count(shape, unlearning, part) for part in parts_of(unlearning))


def kept_bytes(
    shape: Shape, unlearning: Unlearning, dtype: torch.dtype, *, recompute: bool = False
) -> int:
    """What Llama's blocks keep of the updated model's forward pass on the forget texts.

    A block keeps the input of either norm in float32 and what it divides by, queries, keys, values
    and attention's output with one float32 a head, the gate before and after its activation, what
    it multiplies, and the input of a trained matrix; of the first trained block only the latter.
    `recompute`: every block's input, and at most one block as above.
    """
    first, *above = _layers(shape, unlearning, parts_of(unlearning)[0])
    trained = set(unlearning.layers(shape.layers))
    d, size, tokens = shape.hidden, dtype.itemsize, shape.texts * shape.tokens
    norms, attention = 2 * 4 * (d + 1), 2 * size * (d + shape.kv_width) + 4 * shape.heads
    block = norms + attention + 3 * size * shape.intermediate
    if recompute:
        return tokens * (size * d * (1 + len(above)) + block + size * shape.intermediate)
    products = len(trained & {first, *above})
    return tokens * (block * len(above) + size * shape.intermediate * products)


def _plain_part(shape: Shape, unlearning: Unlearning, part: Part) -> int:
    tokens = shape.texts * shape.tokens
    one = shape.layers * _block(shape) + _head(shape)
    forward = (2 if part.reference else 1) * one
    return tokens * (forward + _backward(shape, unlearning, part)) + (
        tokens * _head(shape) if part.logits else 0
    )


def _shared_part(shape: Shape, unlearning: Unlearning, part: Part) -> int:
    """Every text's last token predicts nothing, or its first is not counted: no head for one."""
    tokens, scored = shape.texts * shape.tokens, shape.texts * (shape.tokens - 1)
    models = 2 if part.reference else 1
    layers = _layers(shape, unlearning, part)
    blocks = layers.start + models * len(layers)
    heads = models + 1 if part.logits else 0
    work = blocks * _block(shape) + _backward(shape, unlearning, part)
    return tokens * work + scored * heads * _head(shape)


def _backward(shape: Shape, unlearning: Unlearning, part: Part) -> int:
    """Per token, down to the first trained matrix, without the head."""
    layers = _layers(shape, unlearning, part)
    trained = [layer for layer in unlearning.layers(shape.layers) if layer in layers]
    attention = 8 * shape.tokens * shape.hidden
    activations = (len(layers) - 1) * (2 * shape.block + attention)
    return activations + len(trained) * 2 * shape.hidden * shape.intermediate


def _layers(shape: Shape, unlearning: Unlearning, part: Part) -> range:
    """From the first trained block to the last that the loss looks at."""
    top = shape.layers if part.logits else unlearning.layer + 1
    return range(unlearning.layers(shape.layers)[0], top)


def _block(shape: Shape) -> int:
    return 2 * shape.block + 4 * shape.tokens * shape.hidden


def _head(shape: Shape) -> int:
    return 2 * shape.hidden * shape.vocabulary
