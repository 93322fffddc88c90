"""Retain losses: the distance between updated model and reference on the retain texts."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from defuse.losses.tokens import token_kl, token_logit_mse


@dataclass(frozen=True)
class HiddenMSE:
    """‖h - h0‖² at layer l, averaged over tokens and units; runs no layer above l."""

    name: ClassVar[str] = "hidden_mse"


@dataclass(frozen=True)
class LogitKL:
    """KL(reference ‖ updated) of the next-token distributions, averaged over tokens."""

    name: ClassVar[str] = "logit_kl"

    def per_token(self, logits: Tensor, reference_logits: Tensor) -> Tensor:
        return token_kl(logits, reference_logits)


@dataclass(frozen=True)
class LogitMSE:
    """Squared difference of log-softmax outputs, averaged over tokens and vocabulary."""

    name: ClassVar[str] = "logit_mse"

    def per_token(self, logits: Tensor, reference_logits: Tensor) -> Tensor:
        return token_logit_mse(logits, reference_logits)


@runtime_checkable
class LogitRetain(Protocol):
    """A retain loss on logits: maps both models' (N, vocabulary) to one value a token, (N,)."""

    def per_token(self, logits: Tensor, reference_logits: Tensor) -> Tensor: ...


Retain = HiddenMSE | LogitRetain
