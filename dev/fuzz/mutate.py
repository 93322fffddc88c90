"""Broken versions of a file of text: other values, other structure, other bytes."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from dev.fuzz.fields import Path
from dev.fuzz.values import json_values, texts, yaml_values

HERE = "HOSTILE-VALUE"
TOKENS = (b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x1b[31m", b"[/b]", b'"', b"'")
TOKENS += (b",", b"{", b"[", b"}", b"\n", b"\r", b"\t", b":", b"&a", b"*a", b"<<: ", b"9" * 5000)
TOKENS += (b"\\ud800", b"\\u0000", b"NaN", b"-1", b"1e999", b"[" * 3000, b"x" * 200_000)


@st.composite
def changed_bytes(draw: DrawFn, content: bytes, within: int | None = None) -> bytes:
    """Up to four edits: bits flipped, parts cut out, repeated or overwritten, tokens put in."""
    edited = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        size = min(len(edited), within or len(edited))
        place = draw(st.integers(0, max(0, size - 1)))
        kind = draw(st.sampled_from(("flip", "cut", "end", "repeat", "insert", "overwrite")))
        length = draw(st.sampled_from((1, 2, 4, 8, 100)))
        if kind == "flip" and edited:
            edited[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del edited[place : place + length]
        elif kind == "end":
            del edited[place:]
        elif kind == "repeat":
            edited[place:place] = edited[place : place + length] * draw(st.integers(1, 50))
        else:
            token = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8)))
            stop = place + (len(token) if kind == "overwrite" else 0)
            edited[place:stop] = token
    return bytes(edited)


@st.composite
def changed_yaml(draw: DrawFn, content: bytes, paths: Sequence[Path]) -> bytes:
    """One of the fields `paths` holds a hostile value."""
    value = yaml.safe_load(content)
    path = draw(st.sampled_from(paths))
    if path[0] == "method" and len(path) > 2:
        value["method"] = {"name": path[1]}
        value["topics"][0].pop("coefficient", None)
        path = ("method", *path[2:])
    _set(value, path, HERE)
    text = yaml.safe_dump(value, sort_keys=False)
    return _filled(text, draw(yaml_values()))


@st.composite
def changed_json(draw: DrawFn, content: bytes) -> bytes:
    """One value of a JSON file is another, absent, under another name, or there twice."""
    value = json.loads(content)
    places = list(_places(value))
    node, key = draw(st.sampled_from(places)) if places else ([value], 0)
    change = draw(st.sampled_from(("value", "value", "value", "absent", "name", "twice")))
    if change == "value" or isinstance(node, list):
        node[key] = HERE
        return _filled(json.dumps(value), draw(json_values()))
    own = node.pop(key)
    if change == "name":
        node[draw(texts())] = own
    elif change == "twice":
        node[key] = HERE
        return _filled(json.dumps(value), f"{json.dumps(own)}, {json.dumps(key)}: 1")
    return json.dumps(value).encode()


@st.composite
def changed_jsonl(draw: DrawFn, content: bytes) -> bytes:
    """One line is broken, as a JSON value or as bytes."""
    lines = content.splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    lines[place] = draw(st.one_of(changed_json(lines[place]), changed_bytes(lines[place])))
    return b"\n".join(lines)


@st.composite
def changed_lines(draw: DrawFn, content: bytes) -> bytes:
    """One line of a text file is a hostile text."""
    lines = content.splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    lines[place] = draw(texts()).encode("utf-8", "surrogatepass")
    return b"\n".join(lines) + b"\n"


@st.composite
def changed_csv(draw: DrawFn, content: bytes) -> bytes:
    """One cell is a hostile text."""
    cells = re.split(rb"([,\n])", content)
    place = 2 * draw(st.integers(0, len(cells) // 2))
    cell = draw(texts()).encode("utf-8", "surrogatepass")
    cells[place] = draw(st.sampled_from((cell, b'"' + cell + b'"', b'"' + cell, b"x" * 200_000)))
    return b"".join(cells)


BY_SUFFIX: dict[str, Callable[[bytes], SearchStrategy[bytes]]] = {
    ".json": changed_json,
    ".jsonl": changed_jsonl,
    ".txt": changed_lines,
    ".csv": changed_csv,
}


def _filled(text: str, snippet: str) -> bytes:
    return (
        text.replace(f'"{HERE}"', snippet).replace(HERE, snippet).encode("utf-8", "surrogatepass")
    )


def _places(value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 (any JSON)
    """Each container and key within a JSON value; of long lists, the first few."""
    if isinstance(value, (dict, list)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in list(keys)[:40]:
            yield value, key
            yield from _places(value[key])


def _set(value: Any, path: Path, what: object) -> None:  # noqa: ANN401
    """Set a field; what is on the way and holds no fields is replaced."""
    node: Any = value
    for step, after in pairwise(path):
        inner: Any = node[step] if _has(node, step) else None
        wanted = list if isinstance(after, int) else dict
        if not isinstance(inner, wanted):
            inner = wanted()
            _put(node, step, inner)
        node = inner
    _put(node, path[-1], deepcopy(what))


def _has(node: Any, step: str | int) -> bool:  # noqa: ANN401
    return step in node if isinstance(node, dict) else isinstance(step, int) and step < len(node)


def _put(node: Any, step: Any, value: object) -> None:  # noqa: ANN401
    if isinstance(node, list) and step == len(node):
        node.append(value)
    else:
        node[step] = value
