"""The one source of randomness.

Every draw comes from a generator seeded by what it is for, so that no draw shifts another, and
neither the batch size nor the number of processes changes a result.
"""

import hashlib

import torch


def generator(seed: int, *purpose: str | int, device: str = "cpu") -> torch.Generator:
    """A generator of its own for (seed, purpose): the same in every run on such a device."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
