"""YAML as its author wrote it: nothing is read twice, otherwise, or without bounds."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from defuse.utils.errors import UsageError
from defuse.utils.text import check_text

MOST_BYTES = 2**20
TOO_LARGE = "is larger than 1 MB; a recipe names files, and holds no texts"
MOST_NESTED = 50
MOST_VALUES = 100_000  # with every alias written out
# Numbers of YAML 1.1 that mean something else to everybody else.
OCTAL = re.compile(r"[-+]?0[0-7_]*[0-7]")
SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def load_yaml(text: str, where: str) -> Any:  # noqa: ANN401 (anything YAML can hold)
    """The value of a YAML text; `where` names it in refusals.

    Raises UsageError for what is no YAML, too large or nested too deep, for a key that is given
    twice, and for numbers that YAML reads as octal or sexagesimal.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise UsageError(f"{where}: {TOO_LARGE}")
    try:
        _check_depth(text, where)
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        _check_nodes(node, where)
        value = yaml.safe_load(text)
    except UsageError:
        raise
    # The constructors of tags such as !!int and !!timestamp raise whatever they meet.
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise UsageError(f"{where}: is not valid YAML ({reason}); correct it") from error
    check_text(value, where)
    return value


def _check_depth(text: str, where: str) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, OPENING) - isinstance(event, CLOSING)
        if depth > MOST_NESTED:
            line = event.start_mark.line + 1  # type: ignore[union-attr]
            raise UsageError(
                f"{where}: line {line} is nested deeper than {MOST_NESTED}; flatten it"
            )


def _check_nodes(root: yaml.Node, where: str) -> None:
    """Refuse keys given twice, numbers in disguise, and aliases that multiply."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None  # while its own children are looked at
            sizes[id(node)] = 1 + sum(size(child) for child in _children(node, where))
        found = sizes[id(node)]
        if found is None:
            line = node.start_mark.line + 1
            raise UsageError(f"{where}: line {line} holds an alias of itself; write it out")
        return found

    if size(root) > MOST_VALUES:
        raise UsageError(f"{where}: has more than {MOST_VALUES:,} values; write fewer aliases")


def _children(node: yaml.Node, where: str) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, where)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                lines = (seen[name].start_mark.line + 1, key.start_mark.line + 1)
                raise UsageError(
                    f"{where}: {name} is given twice, in lines {lines[0]} and {lines[1]}; "
                    "leave one of them out"
                )
            if name is not None:
                seen[name] = key
            yield from (key, value)


def _check_scalar(node: yaml.ScalarNode, where: str) -> None:
    if "\0" in node.value:
        line = node.start_mark.line + 1
        raise UsageError(f"{where}: line {line}: {node.value!r} holds a zero byte; remove it")
    if node.style is not None or not node.tag.endswith((":int", ":float")):
        return
    for pattern, kind in ((OCTAL, "an octal number"), (SEXAGESIMAL, "a number to base 60")):
        if pattern.fullmatch(node.value):
            raise UsageError(
                f"{where}: line {node.start_mark.line + 1}: YAML reads {node.value} as {kind}; "
                f"write it without the zero or colon, or as text, '{node.value}'"
            )
