"""Inputs that once went wrong, as small files: what differs from the valid file."""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

from dev.fuzz.kinds import Input

Read = Callable[[str], bytes]  # the valid content of a kind's file, by the kind's name


def save(folder: Path, given: Input, wrong: str, valid: Read) -> Path:
    """Write an input to a file of its own."""
    head = {"wrong": wrong, "kind": given.kind, "command": list(given.command)}
    change = {} if given.content is None else _difference(valid(given.kind), given.content)
    text = json.dumps({**head, **change}, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(letter if letter.isalnum() else "-" for letter in given.kind)
    path = folder / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path, valid: Read) -> Input:
    """Read what `save` wrote."""
    held = json.loads(path.read_text(encoding="utf-8"))
    content = None
    if "at" in held:
        whole = valid(held["kind"])
        new = held.get("text", "").encode()
        if "zlib" in held:
            new = zlib.decompress(base64.b64decode(held["zlib"]))
        content = whole[: held["at"]] + new + whole[held["at"] + held["cut"] :]
    return Input(held["kind"], tuple(held["command"]), content)


def _difference(valid: bytes, content: bytes) -> dict[str, object]:
    start = _alike(valid, content)
    end = _alike(valid[start:][::-1], content[start:][::-1])
    new = content[start : len(content) - end]
    place: dict[str, object] = {"at": start, "cut": len(valid) - start - end}
    try:
        text = new.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and len(text) < 1000:
        return {**place, "text": text}
    return {**place, "zlib": base64.b64encode(zlib.compress(new, 9)).decode()}


def _alike(one: bytes, other: bytes) -> int:
    """How many bytes at the beginning are the same."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
