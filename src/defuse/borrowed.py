"""Use a caller's model and give it back as it was."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout meanwhile; every module's own mode comes back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen_model(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients for the model's own parameters meanwhile."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with evaluation_mode(model):
        try:
            model.requires_grad_(False)
            yield
        finally:
            for parameter, flag in required.items():
                parameter.requires_grad_(flag)


def sharing_copy(model: PreTrainedModel, own: Iterable[Tensor]) -> PreTrainedModel:
    """A copy of `model` with its own `own` tensors; all others are the model's, not copied."""
    copied = {id(tensor) for tensor in own}
    shared = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(t): t for t in shared if id(t) not in copied})
