"""RMU (Li et al. 2403.03218): move the forget texts' hidden states to one random point."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from defuse.methods.base import Steering, StrengthField, Vector
from defuse.utils.config import check_fields


@dataclass(frozen=True)
class RMU:
    """Target c·u; u is a random unit vector, c the topic's `coefficient` (authors' code: 6.5)."""

    vector: Vector = "uniform"
    name: ClassVar[str] = "rmu"
    strength_field: ClassVar[StrengthField] = "coefficient"

    def __post_init__(self) -> None:
        check_fields(self, "method")

    @property
    def needs_reference(self) -> bool:
        return False

    def target(self, steering: Steering, reference: Tensor | None, mask: Tensor) -> Tensor:  # noqa: ARG002
        return steering.strength * steering.direction
