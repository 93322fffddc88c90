"""What a result needs beside its figures: versions, device and memory."""

import platform
import sys
from importlib.metadata import version

import torch

PACKAGES = ("defuse", "torch", "transformers", "safetensors", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide a result."""
    packages = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory in use so far: the CUDA allocator's, else this process's; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
