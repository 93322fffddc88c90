"""Norm and variance of hidden states, for settings given as multiples of them."""

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
    """The statistics over batches of hidden states (batch, time, hidden) and masks (batch, time).

    Sums are in float64 and take one batch at a time, so a corpus need not fit in memory.
    """
    count, norms = 0, 0.0
    total = squares = torch.zeros(())
    for hidden, mask in hidden_and_mask:
        tokens = upcast(hidden[mask])
        count += tokens.shape[0]
        norms += tokens.norm(dim=-1).sum().item()
        # On the host, because some devices (Apple's) have no float64.
        exact = tokens.cpu().double()
        total = total + exact.sum(dim=0)
        squares = squares + exact.square().sum(dim=0)
    variance = (squares / count - (total / count).square()).mean().item()
    return HiddenStatistics(norms / count, max(0.0, variance))
