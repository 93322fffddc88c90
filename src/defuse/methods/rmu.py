"""RMU (Li et al. 2403.03218): pull the forget texts' hidden states to one random point."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from defuse.methods.base import Steering, StrengthField, Vector
from defuse.utils.errors import check_choices


@dataclass(frozen=True)
class RMU:
    """Target c·u: u a random unit vector per topic, c the topic's `coefficient` (paper: 6.5)."""

    vector: Vector = "uniform"
    name: ClassVar[str] = "rmu"
    strength_field: ClassVar[StrengthField] = "coefficient"

    def __post_init__(self) -> None:
        check_choices(self, "method.")

    @property
    def needs_reference(self) -> bool:
        return False

    def target(self, steering: Steering, reference: Tensor | None, mask: Tensor) -> Tensor:  # noqa: ARG002
        return steering.strength * steering.direction
