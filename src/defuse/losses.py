"""Forget and retain losses as pure functions on tensors.

Symbols: B batch (sequences), T time (tokens of a sequence), d hidden units, V vocabulary,
N and M selected tokens of a batch. "Paper" is Huu-Tien et al., arXiv 2501.19202. Losses are
computed in float32, or in float64 where the input is.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Normalise = Literal["sum", "mean"]
Reduction = Literal["sequence", "batch"]


def hidden_mse(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared distance of hidden states over the tokens in `mask` and the units.

    `hidden` is (B, T, d), `target` broadcasts to it, `mask` (B, T) is true where a token counts:
    Σ_t ‖h_t - target_t‖² / (M·d). Both terms of RMU (Li et al. 2403.03218, section 4.2; paper,
    section 3). The published code also averages over padding; here that is up to the mask.
    """
    squared = (upcast(hidden) - upcast(target)).square().mean(dim=-1)
    return squared.where(mask, 0.0).sum() / mask.sum()


def next_token_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(label) for each token: `logits` (N, V), `labels` (N,), result (N,)."""
    return -F.cross_entropy(upcast(logits), labels, reduction="none")


def token_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(reference ‖ updated) of the next-token distributions: (N, V) twice, result (N,)."""
    log_p, log_p0 = upcast(logits).log_softmax(-1), upcast(reference_logits).log_softmax(-1)
    return F.kl_div(log_p, log_p0, reduction="none", log_target=True).sum(-1)


def token_logit_mse(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Σ_v (log p(v) - log p0(v))² / V for each token: (N, V) twice, result (N,)."""
    log_p, log_p0 = upcast(logits).log_softmax(-1), upcast(reference_logits).log_softmax(-1)
    return (log_p - log_p0).square().mean(-1)


@dataclass(frozen=True)
class SequenceLogProbs:
    """Summed log-probability of each sequence and how many tokens were summed, both (B,)."""

    total: Tensor
    count: Tensor

    def score(self, normalise: Normalise, reduction: Reduction) -> Tensor:
        """log p(x), summed or per token: (B,) per sequence, or (1,) with `reduction="batch"`.

        "batch" takes the whole batch for one long sequence, as the paper's code does.
        """
        total, count = self.total, self.count
        if reduction == "batch":
            total, count = total.sum(0, keepdim=True), count.sum(0, keepdim=True)
        return total / count if normalise == "mean" else total


def npo(log_ratio: Tensor, beta: float) -> Tensor:
    """-(2/β)·log σ(-β·(log p(x) - log p0(x))), averaged over (B,) (Zhang et al. 2404.05868, eq. 3).

    At log_ratio 0 this is 2·log 2 / β.
    """
    return -(2 / beta) * F.logsigmoid(-beta * log_ratio).mean()


def simnpo(log_prob: Tensor, beta: float, gamma: float) -> Tensor:
    """-(2/β)·log σ(-β·log p(x)/|x| - γ), averaged over (B,) (Fan et al. 2410.07163, eq. 4).

    `log_prob` is already per token where the method says so.
    """
    return -(2 / beta) * F.logsigmoid(-beta * log_prob - gamma).mean()


def dpo(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """-(2/β)·log σ(β·(chosen - rejected)), averaged over (B,) (Rafailov et al. 2305.18290, eq. 7).

    Each argument is log p - log p0 under the reference; chosen = a refusal, rejected = forget
    text. The factor 2 is NPO's, as in the paper. The paper's code builds the refusal's ratio from
    one model twice, so that it cancels and DPO becomes NPO; here the reference's is the
    reference's.
    """
    return -(2 / beta) * F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio)).mean()


def upcast(tensor: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def mean_norm(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of ‖h_t‖ over each sequence's tokens in `mask`: (B, T, d) and (B, T), result (B,)."""
    norms = upcast(hidden).norm(dim=-1).where(mask, 0.0)
    return norms.sum(-1) / mask.sum(-1).clamp(min=1)
