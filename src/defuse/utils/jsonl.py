"""Files of JSON lines that grow, a line on the disk before the next is computed."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from defuse.utils.errors import UsageError
from defuse.utils.files import naming
from defuse.utils.json_text import parse_json


def append_line(path: Path, header: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    """Add `line` to the file, whose first line is `header`, and see it on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("ab") as file:
        lines = [line] if file.tell() else [header, line]
        file.write("".join(f"{json.dumps(each)}\n" for each in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """All whole lines. Raises UsageError for a line that is no JSON object."""
    *whole, _ = path.read_bytes().split(b"\n")  # a kill may have torn the last line
    for number, line in enumerate(whole, start=1):
        try:
            value = parse_json(line)
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number}: is not valid JSON; delete the file"
            ) from error
        if not isinstance(value, dict):
            raise UsageError(f"{path}, line {number}: is not a JSON object; delete the file")
        yield value


def drop_torn_line(path: Path) -> None:
    """Cut off what a kill left half written, if the file is there."""
    if path.exists():
        whole, newline, _ = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole + newline))
