"""What a result needs beside its figures: versions, device and memory."""

import hashlib
import platform
import sys
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from defuse.utils.distribution import DISTRIBUTION

PACKAGES = ("torch", "transformers", "safetensors", "datasets", "numpy")
FINGERPRINTED = 1024  # values of each parameter, at the least, if it has as many


def versions() -> dict[str, str]:
    """Versions of Python, the platform, the packages and the kernels that decide a result."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "defuse": version(DISTRIBUTION),
        **{name: version(name) for name in PACKAGES},
        "kernels": kernels(),
    }


def kernels() -> str:
    """What decides how PyTorch rounds on a processor: its instructions, threads and oneDNN."""
    mkldnn = torch.backends.mkldnn
    onednn = "with" if mkldnn.is_available() and bool(mkldnn.enabled) else "without"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability}, {torch.get_num_threads()} threads, {onednn} oneDNN"


def run_facts(model: PreTrainedModel, seconds: float) -> dict[str, Any]:
    """What a training run's record says about how it ran: time, memory, device, versions."""
    return {
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(model.device),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def fingerprint(model: PreTrainedModel) -> str:
    """A hash that tells models apart: all parameters' names, shapes and evenly spread values."""
    digest = hashlib.sha256()
    for name, tensor in model.named_parameters():
        if tensor.is_meta:
            continue
        step = max(1, tensor.numel() // FINGERPRINTED)
        some = tensor.detach().flatten()[::step].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.tobytes())
    return digest.hexdigest()


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory in use so far: the CUDA allocator's, else this process's; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
