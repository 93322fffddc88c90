"""Adaptive RMU (Huu-Tien et al. 2408.06223): RMU whose coefficient follows the hidden norm."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from defuse.losses.hidden import mean_norm
from defuse.methods.base import Steering, StrengthField, Vector
from defuse.utils.errors import check_choices


@dataclass(frozen=True)
class AdaptiveRMU:
    """Target β·‖h0(x_f)‖·u, β the topic's `scale` (paper: 3).

    `scale_per="sample"` takes the mean norm over each text's tokens, as the paper writes it.
    "topic" takes that of the topic's first batch and keeps it, as the paper's code does.
    """

    scale_per: Literal["sample", "topic"] = "sample"
    vector: Vector = "uniform"
    name: ClassVar[str] = "adaptive_rmu"
    strength_field: ClassVar[StrengthField] = "scale"

    def __post_init__(self) -> None:
        check_choices(self, "method.")

    @property
    def needs_reference(self) -> bool:
        return self.scale_per == "sample"

    def target(self, steering: Steering, reference: Tensor | None, mask: Tensor) -> Tensor:
        if reference is None:
            return steering.strength * steering.first_norm * steering.direction
        norms = mean_norm(reference, mask)[:, None, None]
        return steering.strength * norms * steering.direction
