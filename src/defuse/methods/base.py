"""What a method has to offer; a new one is one file with one frozen dataclass.

A representation method says where the forget texts' hidden states at layer l are pulled to. A
preference method says what the forget texts' log-probabilities cost. The engine runs either kind
with any retain loss, with or without noise.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from defuse.losses.sequences import SequenceLogProbs
from defuse.utils.errors import require

Vector = Literal["uniform", "gaussian"]
StrengthField = Literal["coefficient", "scale"]


@dataclass(frozen=True)
class Steering:
    """What a representation method is steered by in one topic, fixed before the first step.

    `direction` (hidden,): the unit vector u. `strength`: the method's own multiplier (c or β),
    resolved to a number. `first_norm`: mean ‖h0‖ over the topic's first forget batch.
    """

    direction: Tensor
    strength: float
    first_norm: float


@runtime_checkable
class RepresentationMethod(Protocol):
    """Forget loss = mean squared distance of h(x_f) at layer l from `target`."""

    strength_field: ClassVar[StrengthField]

    @property
    def vector(self) -> Vector: ...

    @property
    def needs_reference(self) -> bool:
        """Whether `target` looks at the reference's hidden states."""
        ...

    def target(self, steering: Steering, reference: Tensor | None, mask: Tensor) -> Tensor:
        """Broadcasts to (batch, time, hidden), as `reference` h0(x_f); `mask` (batch, time)."""
        ...


@runtime_checkable
class PreferenceMethod(Protocol):
    """Forget loss = a function of sequence log-probabilities."""

    @property
    def needs_reference(self) -> bool:
        """Whether `loss` looks at the reference's log-probabilities."""
        ...

    def loss(
        self,
        forget: SequenceLogProbs,
        reference: SequenceLogProbs | None,
        refusal: SequenceLogProbs | None,
        refusal_reference: SequenceLogProbs | None,
    ) -> Tensor:
        """A scalar. References are None unless needed, refusals unless the method has some."""
        ...


Method = RepresentationMethod | PreferenceMethod


def draw_direction(vector: Vector, hidden_size: int, rng: torch.Generator) -> Tensor:
    """A random unit vector (hidden,), drawn in float32 on the CPU whatever the device.

    "uniform" draws each unit from [0, 1), as RMU's code does: all positive, so that two draws have
    a cosine of about 0.75. "gaussian" is uniform on the sphere.
    """
    draw = torch.rand if vector == "uniform" else torch.randn
    direction = draw(hidden_size, generator=rng)
    return direction / direction.norm()


def check_beta(beta: float) -> None:
    """Raise UsageError unless `beta` is a finite number above 0."""
    require(0 < beta < math.inf, "method.beta", beta, "must be a finite number above 0")
