"""DPO (Rafailov et al. 2305.18290) for unlearning: prefers a refusal to the forget text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from defuse.data.given import given_refusals
from defuse.losses.sequences import Normalise, Reduction, SequenceLogProbs, dpo
from defuse.utils.config import UNCHECKED, Positive, check_fields
from defuse.utils.errors import require

REFUSALS = (
    "I don't know.",
    "I have no idea.",
    "I cannot tell you that.",
    "I can't help with this.",
    "Sorry, I don't have an answer.",
    "Sorry, that is unknown to me.",
    "That is beyond what I know.",
    "That is not something I know about.",
    "I know nothing about this subject.",
    "I never learned anything about it.",
    "This is a subject I am not familiar with.",
    "I would only be guessing.",
    "I am not able to say.",
    "I am afraid I have nothing to say about that.",
    "Nothing about it comes to my mind.",
    "You would have to ask somebody else.",
    "Please look for another source on this.",
    "I have to leave this question open.",
    "My knowledge ends before this point.",
    "There is no answer that I could give.",
)


@dataclass(frozen=True)
class DPO:
    """-(2/β)·log σ(β·[(log p(y) - log p0(y)) - (log p(x_f) - log p0(x_f))]); y is a refusal.

    `refusals`: texts such as "I don't know."; each forget text is paired with one of them.
    """

    refusals: Annotated[Sequence[str], UNCHECKED] = REFUSALS
    beta: Positive = 0.1
    normalise: Normalise = "sum"
    reduction: Reduction = "sequence"
    name: ClassVar[str] = "dpo"

    def __post_init__(self) -> None:
        check_fields(self, "method")
        object.__setattr__(self, "refusals", given_refusals(self.refusals, "method.refusals"))
        require(
            bool(self.refusals), "method.refusals", self.refusals, "must hold at least one text"
        )

    @property
    def needs_reference(self) -> bool:
        return True

    def loss(
        self,
        forget: SequenceLogProbs,
        reference: SequenceLogProbs | None,
        refusal: SequenceLogProbs | None,
        refusal_reference: SequenceLogProbs | None,
    ) -> Tensor:
        assert reference is not None  # noqa: S101 (needs_reference)
        assert refusal is not None  # noqa: S101 (refusals)
        assert refusal_reference is not None  # noqa: S101 (refusals)
        how = (self.normalise, self.reduction)
        chosen = refusal.score(*how) - refusal_reference.score(*how)
        return dpo(chosen, forget.score(*how) - reference.score(*how), self.beta)
