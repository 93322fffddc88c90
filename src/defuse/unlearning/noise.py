"""Random Noise Augmentation (RNA): fresh Gaussian noise on the reference's hidden states.

The paper (arXiv 2501.19202, section 4) adds δ ~ N(0, ν·I) to the reference model's hidden
states at layer l whenever the retain loss is computed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.utils.errors import UsageError
from defuse.utils.precision import upcast
from defuse.utils.random import generator
from defuse.utils.scales import multiple, plain_number, resolve


@dataclass(frozen=True)
class GaussianNoise:
    """δ ~ N(0, std²) per hidden unit, fresh for every token and step.

    Give exactly one of `std` and `variance` (ν = std²). `std` may be a multiple such as "0.3x":
    times the hidden states' own standard deviation per unit at the layer. The paper writes a
    variance, but its code multiplies the noise by ν: the values 0.01 to 0.1 behind its figures are
    standard deviations.
    """

    std: float | str | None = None
    variance: float | None = None

    def __post_init__(self) -> None:
        if (self.std is None) == (self.variance is None):
            raise UsageError(
                f"noise: std={self.std} and variance={self.variance}; give exactly one of the two"
            )
        if self.std is not None:
            multiple(self.std, "noise.std")
        plain_number(self.variance, "noise.variance")

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
) -> Tensor:
    """`hidden` (batch, time, hidden) plus N(0, std²) on every real token, at least in float32.

    In half precision a std below 1/256 of a hidden unit's size would be lost in rounding.
    `spans` says where each row's real tokens stand. A row's draw comes from (seed, step, its entry
    in `items`) alone, so neither padding nor the split of a batch over processes changes it.
    """
    noisy = upcast(hidden).clone()
    for row, (span, item) in enumerate(zip(spans, items, strict=True)):
        real = noisy[row, span]
        draw = torch.randn(
            real.shape,
            generator=generator(seed, "noise", step, str(item), device=str(hidden.device)),
            dtype=noisy.dtype,
            device=hidden.device,
        )
        real += std * draw
    return noisy
