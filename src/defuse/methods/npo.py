"""NPO (Zhang et al. 2404.05868): DPO with the rejected text only."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from defuse.losses.sequences import Normalise, Reduction, SequenceLogProbs, npo
from defuse.utils.config import Positive, check_fields


@dataclass(frozen=True)
class NPO:
    """-(2/β)·log σ(-β·(log p(x_f) - log p0(x_f))).

    `normalise`: a text's summed log-probability, as in NPO's paper, or its mean per token, as in
    the recipes of arXiv 2501.19202. `reduction="batch"`: one ratio per batch, as in that
    paper's code.
    """

    beta: Positive = 0.1
    normalise: Normalise = "sum"
    reduction: Reduction = "sequence"
    name: ClassVar[str] = "npo"

    def __post_init__(self) -> None:
        check_fields(self, "method")

    @property
    def needs_reference(self) -> bool:
        return True

    def loss(
        self,
        forget: SequenceLogProbs,
        reference: SequenceLogProbs | None,
        refusal: SequenceLogProbs | None,  # noqa: ARG002
        refusal_reference: SequenceLogProbs | None,  # noqa: ARG002
    ) -> Tensor:
        assert reference is not None  # noqa: S101 (needs_reference)
        how = (self.normalise, self.reduction)
        return npo(forget.score(*how) - reference.score(*how), self.beta)
