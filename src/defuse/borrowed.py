"""Use a caller's model and give it back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
