"""GGUF models in several files, as large ones are published: NAME-00001-of-00003.gguf."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from defuse.utils.errors import UsageError

PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
NOT_OF_THE_WHOLE = ("GGUF.", "split.", "general.architecture")  # the writer sets these anew


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of the model that `path` is a part of, in order; `path` alone for a whole one.

    Raises UsageError for a part that is missing.
    """
    found = PART.fullmatch(path.name)
    if found is None:
        return (path,)
    name, count = found["name"], int(found["count"])
    paths = []
    for number in range(1, count + 1):
        part = path.with_name(f"{name}-{number:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise UsageError(f"model: {part} is missing; {path.name} needs all {count} parts")
        paths.append(part)
    return tuple(paths) or (path,)


@contextmanager
def joined(path: Path) -> Iterator[Path]:
    """One file with the whole model: `path`, or a temporary one that its parts are joined in."""
    parts = parts_of(path)
    if len(parts) == 1:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.gguf"
        _join(parts, whole)
        yield whole


def _join(parts: Sequence[Path], whole: Path) -> None:
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    readers = [GGUFReader(part) for part in parts]
    architecture = readers[0].fields["general.architecture"].contents()
    writer = GGUFWriter(whole, architecture)
    for field in readers[0].fields.values():
        if not field.name.startswith(NOT_OF_THE_WHOLE):
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in (tensor for reader in readers for tensor in reader.tensors):
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
