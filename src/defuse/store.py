"""Finished work on disk: named results that belong to one identity.

An identity is a mapping of all that results depend on (weights, questions, settings), as JSON holds
it. A result of another identity is refused, and so is a damaged one: neither is ever used. Use
`ResultStore` for few large results, a file each, and `ResultLog` for many small ones in one file.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from defuse.utils.errors import UsageError
from defuse.utils.files import write_json
from defuse.utils.json_text import parse_json
from defuse.utils.jsonl import append_line, drop_torn_line, read_lines

SCHEMA_VERSION = 1
T = TypeVar("T")
Identity = Mapping[str, Any]
# From a file of an earlier version: as much of its identity as it names, and its result.
ReadOld = Callable[[Mapping[str, Any]], tuple[Identity, Any]]


def as_json(value: T) -> T:
    """`value` as JSON gives it back: lists for tuples, text for keys."""
    return json.loads(json.dumps(value, allow_nan=False))


def checksum(value: object) -> str:
    """A checksum (CRC-32) of a JSON value: tells a damaged file from a whole one."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def differences(found: Identity, wanted: Identity) -> list[str]:
    """The fields in which two identities differ, those that only one of them has included."""
    return [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]


@dataclass(frozen=True)
class ResultStore:
    """Results as JSON files in `folder`, each written whole.

    `identity`: what all results here belong to. `option`: the option that names the folder, for
    refusals. `read_old`: reads files that an earlier version wrote without a `schema_version`.
    `partial`: only the fields of `identity` are compared, so that a part can be checked early.
    """

    folder: Path
    identity: Identity = field(default_factory=dict)
    option: str = "output"
    read_old: ReadOld | None = None
    partial: bool = False

    def path(self, name: str) -> Path:
        """The file of one result."""
        return self.folder / f"{name}.json"

    def names(self) -> list[str]:
        """The results that are there, in alphabetical order."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def get(self, name: str) -> Any | None:  # noqa: ANN401 (any JSON)
        """A result, or None. Raises UsageError for a damaged file and for another identity."""
        path = self.path(name)
        return self._read(path) if path.is_file() else None

    def put(self, name: str, result: T, **about: Any) -> T:  # noqa: ANN401 (any JSON)
        """Write a result whole, with further fields `about` it; returns it as JSON gives it."""
        result = as_json(result)
        head = {"schema_version": SCHEMA_VERSION, "identity": as_json(self.identity), **about}
        write_json(self.path(name), {**head, "checksum": checksum(result), "result": result})
        return result

    def get_or_compute(self, name: str, compute: Callable[[], T]) -> T:
        """A result, computed and written only if it is not there."""
        found = self.get(name)
        return self.put(name, compute()) if found is None else found

    def _read(self, path: Path) -> Any:  # noqa: ANN401
        try:
            document = parse_json(path.read_text(encoding="utf-8"))
            if "schema_version" in document or self.read_old is None:
                identity, result = document["identity"], document["result"]
                whole = document["checksum"] == checksum(result)
                wanted = as_json(self.identity)
            else:
                identity, result = self.read_old(document)
                whole = True
                wanted = as_json({name: self.identity.get(name) for name in identity})
            other = differences(as_json(identity), wanted)
            if self.partial:
                other = [name for name in other if name in self.identity]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: is damaged, or not a result ({error}); delete it") from error
        if not whole:
            raise UsageError(f"{path}: is damaged (its checksum differs); delete it")
        if other:
            raise UsageError(
                f"{self.option}: {path} belongs to other {', '.join(other)}; name a new folder"
            )
        return result


class ResultLog:
    """Results as lines of one JSON file, each on disk before the next is computed.

    The first line holds the identity. A line that a kill left half-written is dropped. Raises
    UsageError, naming `option`, for a file of another identity and for a damaged line.
    """

    def __init__(self, path: Path, identity: Identity, option: str = "out") -> None:
        self.path = path
        self.identity = as_json(identity)
        self._results: dict[str, Any] = {}
        if path.exists():
            check_log(path, identity, option)
            drop_torn_line(path)
            self._results = dict(_read_results(path))

    def names(self) -> list[str]:
        """The results that are there, in the order in which they were written."""
        return list(self._results)

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def get(self, name: str) -> Any | None:  # noqa: ANN401 (any JSON)
        """A result, or None."""
        return self._results.get(name)

    def put(self, name: str, result: T) -> T:
        """Append a result; returns it as JSON gives it."""
        result = as_json(result)
        line = {"name": name, "checksum": checksum(result), "result": result}
        append_line(self.path, self.identity, line)
        self._results[name] = result
        return result

    def get_or_compute(self, name: str, compute: Callable[[], T]) -> T:
        """A result, computed and appended only if it is not there."""
        return self._results[name] if name in self else self.put(name, compute())


def check_log(path: Path, identity: Identity, option: str = "out") -> None:
    """Raise UsageError if the log at `path` belongs to another identity.

    Only the fields of `identity` are compared, so that a part of it can be checked early.
    """
    header = next(read_lines(path), None)
    if header is None:  # a kill before the first whole line
        return
    other = [name for name, value in as_json(identity).items() if header.get(name) != value]
    if other:
        raise UsageError(
            f"{option}: {path} holds unfinished work for other {', '.join(other)}; finish it with "
            f"the options it was started with, delete it, or name another --{option}"
        )


def _read_results(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_lines(path), start=1):
        if number == 1:
            continue
        if not {"name", "checksum", "result"} <= line.keys():
            raise UsageError(f"{path}, line {number}: is no result; delete the file")
        if line["checksum"] != checksum(line["result"]):
            raise UsageError(
                f"{path}, line {number}: is damaged (its checksum differs); delete the file"
            )
        yield line["name"], line["result"]
