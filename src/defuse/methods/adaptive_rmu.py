"""Adaptive RMU (Huu-Tien et al. 2408.06223): RMU with a coefficient relative to the hidden norm."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from defuse.losses.hidden import mean_norm
from defuse.methods.base import Steering, StrengthField, Vector
from defuse.utils.config import check_fields


@dataclass(frozen=True)
class AdaptiveRMU:
    """Target β·‖h0(x_f)‖·u; β is the topic's `scale` (3 in the authors' code).

    `scale_per="sample"` uses the mean norm over each text's tokens, as in its own paper.
    "topic" uses the mean norm of the topic's first batch throughout, as in the code of 2501.19202.
    """

    scale_per: Literal["sample", "topic"] = "sample"
    vector: Vector = "uniform"
    name: ClassVar[str] = "adaptive_rmu"
    strength_field: ClassVar[StrengthField] = "scale"

    def __post_init__(self) -> None:
        check_fields(self, "method")

    @property
    def needs_reference(self) -> bool:
        return self.scale_per == "sample"

    def target(self, steering: Steering, reference: Tensor | None, mask: Tensor) -> Tensor:
        if reference is None:
            return steering.strength * steering.first_norm * steering.direction
        norms = mean_norm(reference, mask)[:, None, None]
        return steering.strength * norms * steering.direction
