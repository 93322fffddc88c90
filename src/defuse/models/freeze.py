"""Use a caller's model and generators, and give them back as they were."""

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


@contextmanager
def generators_kept() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's generators come back, which transformers' Trainer resets."""
    plain, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpy)


@contextmanager
def cache_setting_kept(model: PreTrainedModel) -> Iterator[None]:
    """`use_cache` comes back, which the Trainer turns off in the config that is saved."""
    setting = getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        model.config.use_cache = setting
