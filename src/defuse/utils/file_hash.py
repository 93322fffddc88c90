"""SHA-256 of files; that of a large file is remembered until the file changes."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from defuse.utils.files import write_json
from defuse.utils.json_text import parse_json

SMALL = 2**20  # bytes; hashing less costs nothing
# A file may change twice within one tick of its file system's clock, so a fresh one is not trusted.
FRESH_SECONDS = 2
MOST_REMEMBERED = 10_000


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes (hexadecimal).

    It is remembered by the file's place on the disk (device and inode), size and times, so that a
    checkpoint of many gigabytes is read once. Raises OSError for a file that cannot be read.
    """
    facts = path.stat()
    if facts.st_size < SMALL:
        return _sha256(path)
    known = _remembered()
    key = f"{facts.st_dev}:{facts.st_ino}"
    seen = [facts.st_size, facts.st_mtime_ns]
    if key in known and known[key][:2] == seen:
        return known[key][2]
    found = _sha256(path)
    after = path.stat()
    if [after.st_size, after.st_mtime_ns] == seen and _is_settled(after):
        _remember(key, [*seen, found])
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_settled(facts: os.stat_result) -> bool:
    return time.time() - facts.st_mtime > FRESH_SECONDS


def _place() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "defuse" / "hashes.json"


def _remembered() -> dict[str, list[Any]]:
    try:
        known = parse_json(_place().read_text(encoding="utf-8"))
        return {key: value for key, value in known.items() if len(value) == 3}
    except (OSError, ValueError, AttributeError, TypeError, RuntimeError):  # absent or damaged
        return {}


def _remember(key: str, value: list[Any]) -> None:
    known = {**_remembered(), key: value}
    some = dict(list(known.items())[-MOST_REMEMBERED:])
    try:
        write_json(_place(), some)
    except (OSError, RuntimeError):  # no home, or a full disk: it is only a shortcut
        return
