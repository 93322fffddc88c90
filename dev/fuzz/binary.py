"""Broken versions of binary files: parquet, safetensors and GGUF."""

import io
import struct

import pyarrow as pa
from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from pyarrow import parquet

from dev.fuzz.mutate import changed_bytes, changed_json

SIZES = (0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
HEADER = 4096  # bytes of a GGUF file in which most of its settings are
COLUMNS = (
    pa.array([None, None, None]),
    pa.array([1, 2, 3]),
    pa.array([1.5, float("nan"), None]),
    pa.array([b"\xff\xfe", b"", None]),
    pa.array(["a", "\x1b[31m", "x[/b]"]),
    pa.array([True, False, None]),
    pa.array([[], [["a"]], None]),
    pa.array([["a", "b"], ["c"], ["d"]]),
    pa.array([{"a": 1}, {"a": None}, None]),
    pa.array([1, 2, 3], pa.timestamp("ns")),
    pa.array([2**62, -(2**62), 0], pa.timestamp("s")),
    pa.array([1, 2, 3], pa.duration("s")),
    pa.array([1, 2, 3], pa.decimal128(20, 2)),
    pa.array([10**6, 2, 3], pa.date32()),
    pa.array(["a", "b", "a"]).dictionary_encode(),
    pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
)


@st.composite
def changed_parquet(draw: DrawFn, content: bytes) -> bytes:
    """Columns of types that hold no text, and bytes that are no column."""
    if draw(st.booleans()):
        return draw(changed_bytes(content))
    table = parquet.read_table(io.BytesIO(content)).slice(0, 3)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, table.num_columns - 1))
        name = draw(st.sampled_from((*table.column_names, "text", "x[/b]", "")))
        column = draw(st.sampled_from(COLUMNS))
        table = table.set_column(place, name, column)
    written = io.BytesIO()
    try:
        parquet.write_table(table, written, store_schema=draw(st.booleans()))
    except (pa.ArrowException, OSError):  # no parquet file can hold this column
        reject()
    return written.getvalue()


@st.composite
def changed_safetensors(draw: DrawFn, content: bytes) -> bytes:
    """Another header, with or without its true length, another length, or other bytes."""
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    kind = draw(st.sampled_from(("header", "header", "length", "bytes")))
    if kind == "header":
        header = draw(changed_json(header))
        return struct.pack("<Q", len(header)) + header + rest
    if kind == "length":
        wrong = draw(st.one_of(st.sampled_from(SIZES), st.integers(0, 2 * length)))
        return struct.pack("<Q", wrong) + header + rest
    return draw(changed_bytes(content, within=8 + length))


@st.composite
def changed_gguf(draw: DrawFn, content: bytes) -> bytes:
    """A number of the header is another, or its bytes are."""
    if draw(st.booleans()):
        return draw(changed_bytes(content, within=HEADER))
    edited = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        form = draw(st.sampled_from(("<I", "<Q")))
        number = draw(st.sampled_from(SIZES)) % (2 ** (8 * struct.calcsize(form)))
        place = draw(st.integers(0, HEADER))
        edited[place : place + struct.calcsize(form)] = struct.pack(form, number)
    return bytes(edited)
