"""Scores of tokens through the output head, computed in chunks.

A float32 tensor (batch, time, vocabulary) makes preference methods and evaluation run out of
memory: 4 × 512 tokens of a vocabulary of 128,256 take 1.05 GB, and autograd keeps several. A
token's score depends only on its own hidden state, so scores and gradients are computed chunk by
chunk, and only (tokens, hidden) is kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 32 * 2**20


def chunks(count: int, vocab_size: int) -> list[slice]:
    """Consecutive slices of `count` rows, each at most `CHUNK_BYTES` of float32 logits."""
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    return [slice(start, start + size) for start in range(0, count, size)]


def tokenwise(score: Callable[[Tensor, slice], Tensor], hidden: Tensor, vocab_size: int) -> Tensor:
    """Concatenate score(hidden[s], s) over consecutive slices s; gradients reach `hidden` only.

    `hidden` is (N, d); `score` maps (n, d) and the slice it came from to (n,), each value from its
    own row.
    """
    slices = chunks(hidden.shape[0], vocab_size)
    if hidden.requires_grad and torch.is_grad_enabled():
        return _Tokenwise.apply(hidden, score, slices)  # type: ignore[return-value]
    with torch.no_grad():
        return torch.cat([score(hidden[s], s) for s in slices])


class _Tokenwise(torch.autograd.Function):
    """Takes the gradient together with the value, so no vocabulary-sized tensor is kept."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        score: Callable[[Tensor, slice], Tensor],
        slices: list[slice],
    ) -> Tensor:
        gradient, values = torch.empty_like(hidden), []
        for s in slices:
            with torch.enable_grad():
                chunk = hidden[s].detach().requires_grad_()
                value = score(chunk, s)
                (gradient[s],) = torch.autograd.grad(value.sum(), chunk)
            values.append(value.detach())
        ctx.save_for_backward(gradient)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None].to(gradient.dtype), None, None
