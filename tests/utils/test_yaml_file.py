"""YAML as its author wrote it."""

from pathlib import Path

import pytest

from defuse.utils.config import read_fields
from defuse.utils.errors import UsageError
from defuse.utils.yaml_file import load_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in ("ab", "bc", "cd", "de", "ef")
)
REFUSED = {
    "twice": ("steps: 1\nseed: 2\nsteps: 3\n", "steps is given twice, in lines 1 and 3"),
    "twice inside": ("a: {b: 1, b: 2}\n", "b is given twice, in lines 1 and 1"),
    "octal": ("steps: 012\n", "line 1: YAML reads 012 as an octal number"),
    "base 60": ("a: 1\nsteps: 1:30\n", "line 2: YAML reads 1:30 as a number to base 60"),
    "bomb": (BOMB, "has more than 100,000 values; write fewer aliases"),
    "alias of itself": ("a: &a [*a]\n", "line 1 holds an alias of itself"),
    "deep": ("[" * 5000 + "]" * 5000, "is nested deeper than 50"),
    "large": ("a: " + "x" * 2**20, "is larger than 1 MB"),
    "int": ("a: !!int abc\n", "is not valid YAML"),
    "timestamp": ("a: !!timestamp 2020-13-45\n", "is not valid YAML"),
    "python": ("a: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
    "half a character": ('a: "\\ud83d"\n', "holds half a character"),
    "zero byte": ('a: 1\nb: "x\\0y"\n', "line 2: 'x\\x00y' holds a zero byte; remove it"),
    "million digits": (f"a: {'9' * 10**6}\n", "is not valid YAML"),
    "no YAML": ("a: [1\n", "is not valid YAML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_read_otherwise_than_written_is_refused(case: str) -> None:
    text, sentence = REFUSED[case]
    with pytest.raises(UsageError, match=r"^recipe\.yaml: ") as refusal:
        load_yaml(text, "recipe.yaml")
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match=r"model\.gguf: is larger than 1 MB"):
        read_fields(path)


def test_good_yaml_is_read_as_by_the_library() -> None:
    text = (
        'a: &x {b: 0, c: 0.5, d: "012", e: 2020-01-01}\nf: [*x, *x]\ng: id:config:test\nh: 1e-3\n'
    )
    found = load_yaml(text, "x")
    assert found["f"][0] == found["a"]
    assert (found["a"]["d"], found["g"], found["h"]) == ("012", "id:config:test", "1e-3")
    assert load_yaml("", "x") is None
