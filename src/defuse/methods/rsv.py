"""RSV (the code of arXiv 2501.19202): shift the forget texts' hidden states by a random vector."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from defuse.methods.base import Steering, StrengthField, Vector
from defuse.utils.config import check_fields
from defuse.utils.precision import upcast


@dataclass(frozen=True)
class RSV:
    """Target h0(x_f) + c·u; c is the topic's `coefficient` (10 in the authors' code)."""

    vector: Vector = "gaussian"
    name: ClassVar[str] = "rsv"
    strength_field: ClassVar[StrengthField] = "coefficient"

    def __post_init__(self) -> None:
        check_fields(self, "method")

    @property
    def needs_reference(self) -> bool:
        return True

    def target(self, steering: Steering, reference: Tensor | None, mask: Tensor) -> Tensor:  # noqa: ARG002
        assert reference is not None  # noqa: S101 (needs_reference)
        return upcast(reference) + steering.strength * steering.direction
