"""How fast a machine multiplies matrices and runs a model, measured in a moment."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

SECONDS = 0.3
ROWS = 512
PROBE_SHAPE = (4, 64)  # texts and tokens, as in a step


def matrix_speed(
    device: torch.device, dtype: torch.dtype, inputs: int = 2048, outputs: int = 2048
) -> float:
    """Floating-point operations a second of a product of (`ROWS`, `inputs`) and (inputs, outputs).

    The first product, for which libraries are loaded, does not count.
    """
    one = torch.ones(ROWS, inputs, dtype=dtype, device=device)
    two = torch.ones(inputs, outputs, dtype=dtype, device=device)
    (one @ two)[0, 0].item()
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < SECONDS:
        (one @ two)[0, 0].item()  # waits for the device
        count += 1
    return 2 * ROWS * two.numel() * count / taken


def tokens_per_second(model: PreTrainedModel, threads: int | None = None) -> float:
    """How many tokens pass forward through the model in a second (the better of two tries).

    `threads` of the processor; None takes those that torch has.
    """
    ids = torch.ones(PROBE_SHAPE, dtype=torch.long, device=model.device)
    seconds = []
    with torch.inference_mode(), _threads(threads or torch.get_num_threads()):
        for _ in range(2):
            began = time.perf_counter()
            model(ids, logits_to_keep=1).logits.sum().item()
            seconds.append(time.perf_counter() - began)
    return ids.numel() / min(seconds)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
