"""AdamW as unlearning uses it: without weight decay, at a constant or a falling rate."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from defuse.utils.config import Positive, check_fields

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Optimiser:
    """AdamW's ε, and the schedule of its learning rate.

    `schedule`: "constant", or "linear", which lowers the rate from its value in the first step
    towards 0 after the last; then the result hardly depends on rounding (docs/stability.md). The
    step is lr·m̂/(√v̂ + ε), with both moments corrected for their bias. With
    `eps_before_correction` ε is added to √v before v is corrected, as AdamW of transformers up to
    4.46 does, which the code behind arXiv 2501.19202 uses (with ε 1e-6). At constant gradients of
    1e-6 its first step is 0.03 and its 500th 0.39 of the step with ε 1e-8 here.
    """

    eps: Positive = 1e-8
    eps_before_correction: bool = False
    schedule: Literal["constant", "linear"] = "constant"

    def __post_init__(self) -> None:
        check_fields(self, "optimiser")

    def eps_at(self, step: int) -> float:
        """The ε that PyTorch's AdamW needs in its step number `step` (from 1).

        m̂/(√v̂ + ε/√(1 − β₂ᵗ)) is the step in which ε is added to √v before the correction.
        """
        correction = math.sqrt(1 - BETAS[1] ** step)
        return self.eps / correction if self.eps_before_correction else self.eps

    def rate_share(self, step: int, steps: int) -> float:
        """The share of the learning rate that step number `step` (from 1) of `steps` takes."""
        return 1.0 if self.schedule == "constant" else (steps - step + 1) / steps


def make_adamw(tensors: Iterable[Tensor], learning_rate: float) -> torch.optim.AdamW:
    """PyTorch's fused AdamW for these tensors."""
    return torch.optim.AdamW(tensors, lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=True)


def take_step(
    adamw: torch.optim.AdamW, optimiser: Optimiser, step: int, learning_rate: float
) -> None:
    """Update the tensors in step number `step` (from 1) and clear their gradients."""
    for group in adamw.param_groups:
        group["eps"], group["lr"] = optimiser.eps_at(step), learning_rate
    adamw.step()
    adamw.zero_grad()
