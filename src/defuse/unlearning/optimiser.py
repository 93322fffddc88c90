"""AdamW as unlearning uses it: without weight decay and with a constant rate."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.utils.config import Positive, check_fields

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Optimiser:
    """AdamW's ε.

    The step is lr·m̂/(√v̂ + ε), with both moments corrected for their bias. With
    `eps_before_correction` ε is added to √v before v is corrected, as AdamW of transformers up to
    4.46 does, which the code behind arXiv 2501.19202 uses (with ε 1e-6). At constant gradients of
    1e-6 its first step is 0.03 and its 500th 0.39 of the step with ε 1e-8 here.
    """

    eps: Positive = 1e-8
    eps_before_correction: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "optimiser")

    def eps_at(self, step: int) -> float:
        """The ε that PyTorch's AdamW needs in its step number `step` (from 1).

        m̂/(√v̂ + ε/√(1 − β₂ᵗ)) is the step in which ε is added to √v before the correction.
        """
        correction = math.sqrt(1 - BETAS[1] ** step)
        return self.eps / correction if self.eps_before_correction else self.eps


def make_adamw(tensors: Iterable[Tensor], learning_rate: float) -> torch.optim.AdamW:
    """PyTorch's fused AdamW for these tensors."""
    return torch.optim.AdamW(tensors, lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=True)


def take_step(adamw: torch.optim.AdamW, optimiser: Optimiser, step: int) -> None:
    """Update the tensors in step number `step` (from 1) and clear their gradients."""
    for group in adamw.param_groups:
        group["eps"] = optimiser.eps_at(step)
    adamw.step()
    adamw.zero_grad()
