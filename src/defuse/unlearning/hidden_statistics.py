"""What the model's hidden states look like, for settings given in multiples of it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.utils.precision import upcast


@dataclass(frozen=True)
class HiddenStatistics:
    """`mean_norm`: mean ‖h‖ over tokens; `variance`: per unit over tokens, averaged over units."""

    mean_norm: float
    variance: float

    @property
    def std(self) -> float:
        return math.sqrt(self.variance)


def hidden_statistics(hidden_and_mask: Iterable[tuple[Tensor, Tensor]]) -> HiddenStatistics:
    """Over batches of hidden states (batch, time, hidden) with their masks (batch, time).

    Sums run in float64, one batch at a time, so that no corpus has to fit in memory.
    """
    count, norms = 0, 0.0
    total = squares = torch.zeros(())
    for hidden, mask in hidden_and_mask:
        tokens = upcast(hidden[mask])
        count += tokens.shape[0]
        norms += tokens.norm(dim=-1).sum().item()
        # The host's float64, for devices (Apple's) that have none.
        exact = tokens.cpu().double()
        total = total + exact.sum(dim=0)
        squares = squares + exact.square().sum(dim=0)
    variance = (squares / count - (total / count).square()).mean().item()
    return HiddenStatistics(norms / count, max(0.0, variance))
