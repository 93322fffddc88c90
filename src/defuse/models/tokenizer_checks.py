"""Checks of tokenizer files, before anything is built from them.

They may be a stranger's. A normaliser must not make a gigabyte of a sentence, and an expression
must not take hours for it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from defuse.models.settings_checks import REMEDY, read_object
from defuse.utils.errors import UsageError, require
from defuse.utils.text import STEERING

MOST_TOKEN_ID = 10**7
MOST_GROWTH = 1000  # how much longer a normaliser may make a text
# A part of an expression: an escape, a set of characters, a bracket, a repetition, or a character.
PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", re.DOTALL)
MANY = re.compile(r"[*+]|\{\d*,\}|\{\d*,?\d{3,}\}")  # without a bound, or with a high one


def check_tokenizer_files(settings: Path | None, tokenizer: Path | None) -> None:
    """Check tokenizer_config.json and tokenizer.json, as far as they are there."""
    if settings is not None:
        _check_longest(settings)
        decoder = read_object(settings).get("added_tokens_decoder")
        _check_added(decoder.values() if isinstance(decoder, dict) else (), settings)
    if tokenizer is not None:
        content = read_object(tokenizer)
        _check_ids(content, tokenizer)
        added = content.get("added_tokens")
        _check_added(added if isinstance(added, list) else (), tokenizer)
        _check_normaliser(content.get("normalizer"), tokenizer)
        _check_expressions(content, tokenizer)


def _check_longest(path: Path) -> None:
    longest = read_object(path).get("model_max_length")
    is_number = isinstance(longest, int | float) and not isinstance(longest, bool) and longest >= 1
    remedy = f"is no number of tokens; {REMEDY}"
    require(longest is None or is_number, f"model: {path}: model_max_length", longest, remedy)


def _check_added(tokens: Iterable[object], path: Path) -> None:
    """The tokenizers' library prints the names of fields that it does not know."""
    for name in (name for token in tokens if isinstance(token, dict) for name in token):
        remedy = f"is no field of an added token; {REMEDY}"
        require(not STEERING.search(name), f"model: {path}", name, remedy)


def _check_ids(content: Mapping[str, Any], path: Path) -> None:
    for token, number in _token_ids(content):
        is_id = isinstance(number, int) and 0 <= number <= MOST_TOKEN_ID
        remedy = f"is no token's id: it has to be 0 to {MOST_TOKEN_ID}; {REMEDY}"
        require(is_id, f"model: {path}: the id of {token!r}", number, remedy)


def _token_ids(content: Mapping[str, Any]) -> Iterator[tuple[object, object]]:
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            yield token.get("content"), token.get("id")


def _check_normaliser(normaliser: object, path: Path) -> None:
    growth = 1.0
    for step in _steps(normaliser):
        growth *= _growth(step)
        if growth > MOST_GROWTH:
            raise UsageError(
                f"model: {path}: the normalizer may make a text more than {MOST_GROWTH} times as "
                f"long; {REMEDY}"
            )


def _steps(normaliser: object) -> Iterator[Mapping[str, Any]]:
    """The steps of a normaliser, which may be sequences within sequences."""
    pending = [normaliser]
    while pending:
        step = pending.pop()
        if not isinstance(step, dict):
            continue
        inner = step.get("normalizers")
        if isinstance(inner, list):
            pending.extend(inner)
        else:
            yield step


def _growth(step: Mapping[str, Any]) -> float:
    """The most by which one step lengthens a text of one character or more."""
    if step.get("type") == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")))
    if step.get("type") != "Replace":
        return 1.0
    pattern, content = step.get("pattern"), len(str(step.get("content", "")))
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(replaced, str) and replaced:
        return max(1.0, content / len(replaced))
    return 1.0 + content  # an expression may match between any two characters


def _check_expressions(content: Mapping[str, Any], path: Path) -> None:
    for expression in _expressions(content):
        if repeats_repetitions(expression):
            raise UsageError(
                f"model: {path}: the expression {expression!r} repeats what repeats itself, which "
                f"may take for ever on a text; {REMEDY}"
            )


def _expressions(content: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions of normaliser, splitting and decoding."""
    pending: list[object] = [content.get(k) for k in ("normalizer", "pre_tokenizer", "decoder")]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if isinstance(found := node.get("Regex"), str):
                yield found
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def repeats_repetitions(expression: str) -> bool:
    """Whether a group with a repetition in it is repeated: its time may grow exponentially."""
    open_groups, closed = [False], False  # whether there is a repetition in a group
    for part in (found[0] for found in PART.finditer(expression)):
        if part == "(":
            open_groups.append(False)
            closed = False
            continue
        if part == ")" and len(open_groups) > 1:
            closed = open_groups.pop()
            open_groups[-1] |= closed
            continue
        if MANY.fullmatch(part):
            if closed:
                return True
            open_groups[-1] = True
        closed = False
    return False
