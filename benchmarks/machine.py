"""What a machine does in a time: seconds with its queue empty, peak memory, peak speed."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

MATRIX = {"cpu": 2048, "cuda": 8192}


def seconds(call: Callable[[], object], device: str) -> float:
    """How long `call` takes, all that it has started on the device included.

    On one thread of the CPU these are processor seconds, which other work does not touch.
    """
    clock = time.process_time if on_one_thread(device) else time.perf_counter
    wait_for(device)
    start = clock()
    call()
    wait_for(device)
    return clock() - start


def on_one_thread(device: str) -> bool:
    return device == "cpu" and torch.get_num_threads() == 1


def wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measured_peak(device: str, dtype: torch.dtype) -> float:
    """The fastest of a few products of large square matrices, in 10¹² operations a second."""
    size = MATRIX[device.partition(":")[0]]
    one, other = torch.randn(2, size, size, device=device, dtype=dtype)
    times = [seconds(lambda: one @ other, device) for _ in range(6)]
    return 2 * size**3 / min(times) / 1e12


class Memory:
    """MiB taken since this was made: on CUDA in tensors, else resident above what there was."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = 0.0 if device.startswith("cuda") else resident("VmRSS")

    def peak(self) -> float:
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resident("VmHWM") - self.before


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB (Linux)."""
    if sys.platform != "linux":
        raise SystemExit("memory on the CPU is read from /proc, which only Linux has")
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
