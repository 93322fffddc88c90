"""What a command leaves in a folder, without times, to be compared to the bit."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Fields that say when, how long or in how much memory.
TIMES = {"seconds", "peak_memory_bytes", "cost", "date", "started", "finished", "time"}
Files = Mapping[str, str]  # hashes by path


@dataclass(frozen=True)
class Undisturbed:
    """The files of an undisturbed run; of `varying` ones, two such runs differ."""

    files: Files
    varying: frozenset[str]

    def difference(self, found: Files) -> str:
        """In words, how `found` differs; nothing if it does not."""
        for name in sorted({*self.files, *found}):
            if name not in found:
                return f"{name} is missing"
            if name not in self.files:
                return f"{name} is left behind"
            if name not in self.varying and found[name] != self.files[name]:
                return f"{name} differs"
        return ""


def read_files(folder: Path, without: Files = {}) -> dict[str, str]:  # noqa: B006 (never changed)
    """The hash of every file in `folder`, times aside, but those of `without` (unless changed)."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): _hash(path) for path in paths}
    return {name: value for name, value in found.items() if without.get(name) != value}


def clear(folder: Path, inputs: Files) -> None:
    """Remove all but the inputs."""
    first = {Path(name).parts[0] for name in inputs}
    for path in folder.iterdir():
        if path.name not in first:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _hash(path: Path) -> str:
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        if path.suffix == ".json":
            values = [json.loads(content)]
        elif path.suffix == ".jsonl":
            values = [json.loads(line) for line in content.splitlines()]
        else:
            return re.sub(rb"\d+ s\b", b"", content) if path.suffix == ".md" else content
    except ValueError:
        return content
    return json.dumps([_timeless(value) for value in values]).encode()


def _timeless(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    if isinstance(value, dict):
        if {"checksum", "result"} <= value.keys():  # the checksum is of times, too
            value = {**value, "checksum": None}
        return {name: _timeless(each) for name, each in value.items() if name not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value
