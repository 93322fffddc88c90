"""Losses on hidden states at one layer."""

from jaxtyping import Bool, Float
from torch import Tensor

from defuse.utils.precision import upcast


def hidden_mse(
    hidden: Float[Tensor, "batch time hidden"],
    target: Float[Tensor, "..."],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Mean squared distance of hidden states, over the tokens in `mask` and the units.

    Σ_t ‖h_t - target_t‖² / (M·d). `target` broadcasts to `hidden`, `mask` is true where a token
    counts. Both terms of RMU (Li et al. 2403.03218, section 4.2). The
    published code also averages over padding; here `mask` decides.
    """
    squared = (upcast(hidden) - upcast(target)).square().mean(dim=-1)
    return squared.where(mask, 0.0).sum() / mask.sum()


def mean_norm(
    hidden: Float[Tensor, "batch time hidden"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Mean of ‖h_t‖ over each sequence's tokens in `mask`."""
    norms = upcast(hidden).norm(dim=-1).where(mask, 0.0)
    return norms.sum(-1) / mask.sum(-1).clamp(min=1)
