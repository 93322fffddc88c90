"""Hostile values: what a careless or malicious author may put into a field."""

import json

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

# No path of this machine is among them that could be written.
TEXTS = (
    "",
    " ",
    "x",
    "x[/b]",
    "[bold red]x",
    "a\0b",
    "\0",
    "~",
    "~nobody/x",
    "../../outside",
    "/dev/null/x",
    "/dev/zero",
    "/proc/self/environ",
    "\x1b[31mred\x1b]0;title\x07",
    "a\rb\x9b2J",
    "\u202egnirts",
    "\ud800",
    "a\udcffb",
    "x\ny",
    "\u2028",
    "😀" * 100,
    "x" * 5000,
    "%s{}{0}{token}$HOME",
    "none",
    "1e400x",
    "-1x",
    "0.3x",
    ".",
    "nobody/nothing",
    "nobody/nothing@main",
    "a:b:c:d",
    "package:os",
    "package:no.such",
    "missing.gguf",
    "model",
    "model/config.json",
    "forget.txt",
    "forget.jsonl",
    "*",
)
NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "7",
    "1000000000",
    "1000000001",
    "2147483648",
    "-9223372036854775809",
)
NUMBERS += (
    "18446744073709551616",
    "1" + "0" * 30,
    "0.5",
    "-0.5",
    "1e-320",
    "1e308",
    "1e30",
    "1E400",
)
NUMBERS += ("9" * 5000, "1.0", "-0")
STRUCTURES = (
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[{}]",
    "[1, 2]",
    '["a", 1]',
    '{"": ""}',
    '{"x[/b]": 1}',
    '{"name": {"name": "x"}}',
    '{"a": 1, "a": 2}',
    "[" * 60 + "]" * 60,
    "[" * 5000 + "]" * 5000,
    '{"a":' * 2000 + "1" + "}" * 2000,
    f"[{', '.join(map(str, range(1100)))}]",
)
ONLY_JSON = ("NaN", "Infinity", "-Infinity", '"\\ud800"', '"\\u0000"', "'x'", "")
ONLY_YAML = (
    ".nan",
    ".inf",
    "-.inf",
    "!!int abc",
    "!!float x",
    "!!timestamp 2020-13-45",
    "2020-01-01",
    "2020-13-45",
    "0x10",
    "017",
    "1:30",
    "1_000",
    "&a [*a]",
    "*nothing",
    "!!binary AAA=",
    "!!binary ///",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!python/object:os.system x",
    "!unknown x",
    "{<<: 1}",
    "{[a]: 1}",
    "{1: 2, null: 3}",
    "{? {a: 1} : 2}",
    '"\\xd800"',
    "|",
    "- a",
    "a: b",
    "%x",
    "@x",
    "`x",
)


def texts() -> SearchStrategy[str]:
    """A text with anything in it, but no path that begins at the root or a home."""
    free = st.text(st.characters(), max_size=20).filter(lambda text: text[:1] not in ("/", "~"))
    return st.one_of(st.sampled_from(TEXTS), free)


def json_values() -> SearchStrategy[str]:
    """The JSON, or what looks like it, of one value."""
    numbers = st.one_of(st.integers(), st.floats()).map(json.dumps)
    known = st.sampled_from((*NUMBERS, *STRUCTURES, *ONLY_JSON))
    return st.one_of(known, texts().map(json.dumps), numbers)


def yaml_values() -> SearchStrategy[str]:
    """The YAML of one value, in one line."""
    return st.one_of(st.sampled_from(ONLY_YAML), json_values())
