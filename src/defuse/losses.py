"""Forget and retain losses as pure functions on tensors.

Axes: `batch` sequences (B), `time` tokens of a sequence (T), `hidden` units (d), `vocab` (V),
`tokens` selected from a batch (N or M). The tests check them at run time. "Paper" is Huu-Tien et
al., arXiv 2501.19202. Losses are computed in float32, or in float64 where the input is.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Normalise = Literal["sum", "mean"]
Reduction = Literal["sequence", "batch"]


def hidden_mse(
    hidden: Float[Tensor, "batch time hidden"],
    target: Float[Tensor, "..."],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Mean squared distance of hidden states over the tokens in `mask` and the units.

    `target` broadcasts to `hidden`, `mask` is true where a token counts:
    Σ_t ‖h_t - target_t‖² / (M·d). Both terms of RMU (Li et al. 2403.03218, section 4.2; paper,
    section 3). The published code also averages over padding; here that is up to the mask.
    """
    squared = (upcast(hidden) - upcast(target)).square().mean(dim=-1)
    return squared.where(mask, 0.0).sum() / mask.sum()


def next_token_log_probs(
    logits: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """log p(label) for each token."""
    return -F.cross_entropy(upcast(logits), labels, reduction="none")


def token_kl(
    logits: Float[Tensor, "tokens vocab"], reference_logits: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(reference ‖ updated) of the next-token distributions at each token."""
    log_p, log_p0 = upcast(logits).log_softmax(-1), upcast(reference_logits).log_softmax(-1)
    return F.kl_div(log_p, log_p0, reduction="none", log_target=True).sum(-1)


def token_logit_mse(
    logits: Float[Tensor, "tokens vocab"], reference_logits: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """Σ_v (log p(v) - log p0(v))² / V for each token."""
    log_p, log_p0 = upcast(logits).log_softmax(-1), upcast(reference_logits).log_softmax(-1)
    return (log_p - log_p0).square().mean(-1)


@dataclass(frozen=True)
class SequenceLogProbs:
    """Summed log-probability of each sequence and how many tokens were summed, both (B,)."""

    total: Float[Tensor, " batch"]
    count: Float[Tensor, " batch"]

    def score(self, normalise: Normalise, reduction: Reduction) -> Float[Tensor, " scores"]:
        """log p(x), summed or per token: (B,) per sequence, or (1,) with `reduction="batch"`.

        "batch" takes the whole batch for one long sequence, as the paper's code does.
        """
        total, count = self.total, self.count
        if reduction == "batch":
            total, count = total.sum(0, keepdim=True), count.sum(0, keepdim=True)
        return total / count if normalise == "mean" else total


def npo(log_ratio: Float[Tensor, " batch"], beta: float) -> Float[Tensor, ""]:
    """-(2/β)·log σ(-β·(log p(x) - log p0(x))), averaged (Zhang et al. 2404.05868, eq. 3).

    At log_ratio 0 this is 2·log 2 / β.
    """
    return -(2 / beta) * F.logsigmoid(-beta * log_ratio).mean()


def simnpo(log_prob: Float[Tensor, " batch"], beta: float, gamma: float) -> Float[Tensor, ""]:
    """-(2/β)·log σ(-β·log p(x)/|x| - γ), averaged (Fan et al. 2410.07163, eq. 4).

    `log_prob` is already per token where the method says so.
    """
    return -(2 / beta) * F.logsigmoid(-beta * log_prob - gamma).mean()


def dpo(
    chosen_log_ratio: Float[Tensor, " batch"],
    rejected_log_ratio: Float[Tensor, " batch"],
    beta: float,
) -> Float[Tensor, ""]:
    """-(2/β)·log σ(β·(chosen - rejected)), averaged (Rafailov et al. 2305.18290, eq. 7).

    Each argument is log p - log p0 under the reference; chosen = a refusal, rejected = forget
    text. The factor 2 is NPO's, as in the paper. The paper's code builds the refusal's ratio from
    one model twice, so that it cancels and DPO becomes NPO; here the reference's is the
    reference's.
    """
    return -(2 / beta) * F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio)).mean()


def upcast(tensor: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def mean_norm(
    hidden: Float[Tensor, "batch time hidden"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Mean of ‖h_t‖ over each sequence's tokens in `mask`."""
    norms = upcast(hidden).norm(dim=-1).where(mask, 0.0)
    return norms.sum(-1) / mask.sum(-1).clamp(min=1)
