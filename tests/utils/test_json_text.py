"""JSON that anybody may have written."""

import json

import pytest

from defuse.utils.json_text import parse_json


@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize("kind", ["list", "object"])
def test_deep_nesting_is_a_value_error(depth: int, kind: str) -> None:
    ends = ("[", "]") if kind == "list" else ('{"a":', "}")
    text = ends[0] * depth + "1" + ends[1] * depth
    for each in (text, text.encode()):
        with pytest.raises(ValueError, match="nested deeper than 100"):
            parse_json(each)


def test_many_digits_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="digits"):
        parse_json("9" * 10**6)


def test_wide_values_are_read() -> None:
    value = [{"a": [[]] * 300, "b": [{}] * 300}]
    assert parse_json(json.dumps(value)) == value
    text = "[" * 100 + "]" * 100
    assert json.dumps(parse_json(text)) == text
