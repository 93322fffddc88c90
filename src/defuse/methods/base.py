"""The two kinds of unlearning method; a new method is one file with one frozen dataclass.

A representation method gives a target for the forget texts' hidden states at layer l. A preference
method gives a loss of the forget texts' log-probabilities. The training step runs either kind with
any retain loss, with or without noise.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from defuse.losses.sequences import SequenceLogProbs

Vector = Literal["uniform", "gaussian"]
StrengthField = Literal["coefficient", "scale"]


@dataclass(frozen=True)
class Steering:
    """The direction and strength of steering in one topic, fixed before the first step.

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
        """Whether `target` uses the reference's hidden states."""
        ...

    def target(self, steering: Steering, reference: Tensor | None, mask: Tensor) -> Tensor:
        """The target; it broadcasts to (batch, time, hidden), the shape of `reference` h0(x_f).

        `mask` (batch, time) is true where a token counts.
        """
        ...


@runtime_checkable
class PreferenceMethod(Protocol):
    """Forget loss = a function of sequence log-probabilities."""

    @property
    def needs_reference(self) -> bool:
        """Whether `loss` uses the reference's log-probabilities."""
        ...

    def loss(
        self,
        forget: SequenceLogProbs,
        reference: SequenceLogProbs | None,
        refusal: SequenceLogProbs | None,
        refusal_reference: SequenceLogProbs | None,
    ) -> Tensor:
        """A scalar. References are None unless needed; refusals are None if the method has none."""
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
