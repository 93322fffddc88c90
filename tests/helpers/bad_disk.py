"""What a bad disk does: it is full, or a bit flips."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow above `size` bytes meanwhile, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def flip_a_bit(path: Path, place: int) -> None:
    """Change one bit of the byte at `place`; a negative place counts from the end."""
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 64
    path.write_bytes(damaged)
