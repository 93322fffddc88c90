"""SimNPO (Fan et al. 2410.07163): NPO per token, without a reference."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from defuse.losses.sequences import Normalise, Reduction, SequenceLogProbs, simnpo
from defuse.utils.config import Finite, Positive, check_fields


@dataclass(frozen=True)
class SimNPO:
    """-(2/β)·log σ(-β·log p(x_f)/|x_f| - γ).

    |x_f| is the number of predicted tokens. SimNPO is a mean by definition; `normalise="sum"` is
    for comparison. `reduction="batch"`: one mean over all tokens of the batch.
    """

    beta: Positive = 0.1
    gamma: Finite = 0.0
    normalise: Normalise = "mean"
    reduction: Reduction = "sequence"
    name: ClassVar[str] = "simnpo"

    def __post_init__(self) -> None:
        check_fields(self, "method")

    @property
    def needs_reference(self) -> bool:
        return False

    def loss(
        self,
        forget: SequenceLogProbs,
        reference: SequenceLogProbs | None,  # noqa: ARG002
        refusal: SequenceLogProbs | None,  # noqa: ARG002
        refusal_reference: SequenceLogProbs | None,  # noqa: ARG002
    ) -> Tensor:
        return simnpo(forget.score(self.normalise, self.reduction), self.beta, self.gamma)
