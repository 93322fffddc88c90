"""Random Noise Augmentation (RNA): fresh Gaussian noise on the reference's hidden states.

RNA (arXiv 2501.19202, abstract) adds δ ~ N(0, ν·I) to the reference model's hidden states whenever
the retain loss is computed; its authors' code does so at layer l.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.utils.config import Natural, NotNegative, check_fields
from defuse.utils.errors import UsageError
from defuse.utils.precision import upcast
from defuse.utils.random import generator
from defuse.utils.scales import Multiple, resolve


@dataclass(frozen=True)
class GaussianNoise:
    """δ ~ N(0, std²) per hidden unit, drawn anew for every token and step.

    Give exactly one of `std` and `variance` (ν = std²). `std` may be a multiple of the hidden
    states' standard deviation per unit at the layer, such as "0.3x". The abstract speaks of N(0,
    νI), but its authors' code multiplies the noise by ν: its values 0.01 to 0.1 are standard
    deviations. `layers` (0-based): the blocks whose outputs get noise, one after the other; None is
    the steering layer.
    """

    std: Multiple | None = None
    variance: NotNegative | None = None
    layers: Sequence[Natural] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "noise")
        if (self.std is None) == (self.variance is None):
            raise UsageError(
                f"noise: std={self.std} and variance={self.variance}; give exactly one of the two"
            )
        if self.layers is not None and not self.layers:
            raise UsageError("noise.layers: [] names no block; leave it out for the steering layer")

    def resolve_std(self, hidden_std: float) -> float:
        """The standard deviation, given that of the hidden states per unit."""
        if self.variance is not None:
            return math.sqrt(self.variance)
        assert self.std is not None  # noqa: S101 (__post_init__)
        return resolve(self.std, hidden_std, "noise.std")


def add_noise(
    hidden: Tensor,
    std: float,
    spans: Sequence[slice],
    seed: int,
    step: int,
    items: Sequence[object],
    purpose: str = "noise",
) -> Tensor:
    """`hidden` (batch, time, hidden) plus N(0, std²) on every real token, in float32 at least.

    In half precision a std below 1/256 of a hidden unit's size would be lost in rounding. `spans`
    are the places of each row's real tokens. A row's draw comes from (seed, `purpose`, step,
    its entry in `items`) alone, so padding and the number of processes do not change it.
    """
    noisy = upcast(hidden).clone()
    for row, (span, item) in enumerate(zip(spans, items, strict=True)):
        real = noisy[row, span]
        draw = torch.randn(
            real.shape,
            generator=generator(seed, purpose, step, str(item), device=str(hidden.device)),
            dtype=noisy.dtype,
            device=hidden.device,
        )
        real += std * draw
    return noisy
