"""JSON that anybody may have written: its nesting is bounded, so that all code can walk it."""

import json
from typing import Any

MOST_NESTED = 100


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 (anything JSON can hold)
    """The value of a JSON text. Raises ValueError for anything else, and for deep nesting."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _refusal() from error
    opening = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, opening)) > MOST_NESTED and _depth(value) > MOST_NESTED:  # type: ignore[arg-type]
        raise _refusal()
    return value


def _refusal() -> ValueError:
    return ValueError(f"it is nested deeper than {MOST_NESTED}")


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [v for each in level for v in (each.values() if isinstance(each, dict) else each)]
    return depth
