"""Losses on next-token distributions, one value per token."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from defuse.utils.precision import upcast


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
