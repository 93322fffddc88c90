"""RSV (paper, section 5): shift the forget texts' hidden states by a random vector."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from defuse.methods.base import Steering, Vector


@dataclass(frozen=True)
class RSV:
    """Target h0(x_f) + c·u, c the topic's `coefficient` (paper: 10)."""

    vector: Vector = "gaussian"
    name: ClassVar[str] = "rsv"
    strength_field: ClassVar[Literal["coefficient"]] = "coefficient"
    needs_reference: ClassVar[bool] = True

    def target(self, steering: Steering, reference: Tensor | None, mask: Tensor) -> Tensor:  # noqa: ARG002
        assert reference is not None  # noqa: S101 (needs_reference)
        return reference + steering.strength * steering.direction.to(reference.dtype)
