"""How fast a machine multiplies matrices, measured in a moment."""

import time

import torch

SECONDS = 0.3
ROWS = 512


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
