"""The header of a GGUF file: fields and tensors, checked against the size of the file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only the header is read.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from defuse.models.gguf_parts import parts_of
from defuse.utils.errors import UsageError, require

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
NUMBERS |= {10: "Q", 11: "q", 12: "d"}
MOST_DIMENSIONS, MOST_DEPTH = 8, 4
SHORT = 64  # arrays up to this length are kept, of others only the length
REMEDY = "download the file again"


@dataclass(frozen=True)
class LongArray:
    """An array that is not kept."""

    length: int


@dataclass(frozen=True)
class GGUFHeader:
    """`fields` by name; `tensors`: the shape of each by name, the fastest dimension first."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture", ""))

    def own(self, name: str) -> Any:  # noqa: ANN401 (a field of any type)
        """A field of the architecture, such as llama.block_count; None if it is missing."""
        return self.fields.get(f"{self.architecture}.{name}")

    @property
    def elements(self) -> int:
        """The number of weights in the file."""
        return sum(map(math.prod, self.tensors.values()))


def read_header(path: Path) -> GGUFHeader:
    """Read and check the header, of all parts of a model if `path` is one.

    Raises UsageError for a file that is cut or broken, and for parts that do not belong together.
    """
    parts = parts_of(path)
    headers = [_read(part) for part in parts]
    for number, header in enumerate(headers):
        _check_part(header, number, len(parts))
    tensors = {name: shape for header in headers for name, shape in header.tensors.items()}
    whole = GGUFHeader(path, headers[0].fields, tensors)
    _check(whole)
    return whole


def _read(path: Path) -> GGUFHeader:
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            return _Reader(data).header(path)
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(f"model: {path} is no whole GGUF file ({error}); {REMEDY}") from error


class _Reader:
    """Reads values one after the other, and no byte beyond the end."""

    def __init__(self, data: mmap) -> None:
        self.data = data
        self.at = 0

    def header(self, path: Path) -> GGUFHeader:
        if self._take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._number("I")  # the version
        tensors, fields = self._number("Q"), self._number("Q")
        found = dict(self._field() for _ in range(self._bounded(fields, 13)))
        shapes = dict(self._tensor() for _ in range(self._bounded(tensors, 24)))
        return GGUFHeader(path, found, shapes)

    def _field(self) -> tuple[str, Any]:
        name = self._string()
        return name, self._value(self._number("I"))

    def _tensor(self) -> tuple[str, tuple[int, ...]]:
        name, dimensions = self._string(), self._number("I")
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"{name!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        self._take(12)  # number type and place
        # The smallest types take about a bit and a half a weight.
        if math.prod(shape) > 8 * len(self.data):
            raise ValueError(f"{name!r} is larger than the file")
        return name, shape

    def _value(self, kind: int, depth: int = 0) -> Any:  # noqa: ANN401
        if kind in NUMBERS:
            return self._number(NUMBERS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY or depth > MOST_DEPTH:
            raise ValueError(f"a field has the unknown type {kind}")
        inner, length = self._number("I"), self._number("Q")
        if inner in NUMBERS:
            size = struct.calcsize(f"<{NUMBERS[inner]}")
            raw = self._take(self._bounded(length, size) * size)
            return (
                list(struct.unpack(f"<{length}{NUMBERS[inner]}", raw))
                if length <= SHORT
                else LongArray(length)
            )
        values = [self._value(inner, depth + 1) for _ in range(self._bounded(length, 8))]
        return values if length <= SHORT else LongArray(length)

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8", errors="replace")

    def _number(self, form: str) -> Any:  # noqa: ANN401
        size = struct.calcsize(f"<{form}")
        return struct.unpack(f"<{form}", self._take(size))[0]

    def _bounded(self, count: int, size: int) -> int:
        """`count`, if the rest of the file can hold so many values of `size` bytes."""
        if count * size > len(self.data) - self.at:
            raise ValueError(f"it ends before the {count:,} entries that it announces")
        return count

    def _take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise ValueError("it ends in the middle of its header")
        return self.data[start : self.at]


def _check_part(header: GGUFHeader, number: int, count: int) -> None:
    found = header.fields.get("split.no", 0), header.fields.get("split.count", 1) or 1
    if found != (number, count):
        raise UsageError(
            f"model: {header.path} calls itself part {found[0] + 1} of {found[1]}, and not "
            f"{number + 1} of {count}; give the parts their own names, NAME-00001-of-00002.gguf"
        )


def _check(header: GGUFHeader) -> None:
    path = header.path
    blocks, name = header.own("block_count"), f"{path}: {header.architecture}.block_count"
    remedy = f"is no number of blocks for the {len(header.tensors)} tensors of the file; {REMEDY}"
    is_count = isinstance(blocks, int) and 1 <= blocks <= len(header.tensors)
    require(is_count, f"model: {name}", blocks, remedy)
    for field, value in header.fields.items():
        is_length = field.endswith(("_length", "_count", "_count_kv", ".vocab_size"))
        remedy = f"is no size of a model; {REMEDY}"
        if is_length and isinstance(value, int):
            require(0 <= value <= 10**9, f"model: {path}: {field}", value, remedy)
