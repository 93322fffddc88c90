"""Context managers that freeze a model, and restore it and the random generators."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and restore every module's own mode at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen_model(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode and no gradients for the model's parameters; restore both at the end."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with evaluation_mode(model):
        try:
            model.requires_grad_(False)
            yield
        finally:
            for parameter, flag in required.items():
                parameter.requires_grad_(flag)


def sharing_copy(model: PreTrainedModel, own: Iterable[Tensor]) -> PreTrainedModel:
    """A copy of `model` in which only the tensors `own` are copied; all others are shared."""
    copied = {id(tensor) for tensor in own}
    shared = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(t): t for t in shared if id(t) not in copied})


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore Python's, NumPy's and PyTorch's generators, which transformers' Trainer resets."""
    plain, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpy)


@contextmanager
def cache_setting_kept(model: PreTrainedModel) -> Iterator[None]:
    """Restore `use_cache`, which the Trainer turns off in the config that is saved."""
    setting = getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        model.config.use_cache = setting
