"""Losses on the log-probabilities of whole sequences."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Normalise = Literal["sum", "mean"]
Reduction = Literal["sequence", "batch"]


@dataclass(frozen=True)
class SequenceLogProbs:
    """The summed log-probability of each sequence and its number of tokens, both (B,)."""

    total: Float[Tensor, " batch"]
    count: Float[Tensor, " batch"]

    def score(self, normalise: Normalise, reduction: Reduction) -> Float[Tensor, " scores"]:
        """log p(x), summed or per token: (B,) per sequence, or (1,) with `reduction="batch"`.

        "batch" treats the batch as one long sequence, as the RNA paper's code does.
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

    `log_prob` is already per token, unless the method has `normalise="sum"`.
    """
    return -(2 / beta) * F.logsigmoid(-beta * log_prob - gamma).mean()


def dpo(
    chosen_log_ratio: Float[Tensor, " batch"],
    rejected_log_ratio: Float[Tensor, " batch"],
    beta: float,
) -> Float[Tensor, ""]:
    """-(2/β)·log σ(β·(chosen - rejected)), averaged (Rafailov et al. 2305.18290, eq. 7).

    Each argument is log p - log p0, where p0 is the reference; the refusal is chosen, the forget
    text rejected. The factor 2 is NPO's, as in the RNA paper. Its code computes the refusal's ratio
    from one model twice, so it cancels and DPO becomes NPO; here it uses the reference.
    """
    return -(2 / beta) * F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio)).mean()
