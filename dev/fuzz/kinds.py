"""A kind of inputs: what is broken, how, and the commands that read it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Command = tuple[str, ...]
Change = Callable[[bytes], SearchStrategy[bytes]]
OUTPUTS = ("result.json*", "unlearned*", "tuned*", "attacked*", "swept*", "compared*", "taught*")
OUTPUTS += ("reproduced*", "lab*", "real*", "runs*", "flips*", ".*.part", ".cache*")


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind: `file` with another content, or commands with other arguments.

    `share`: of all inputs, relative to other kinds. `writes`: patterns of what the commands may
    write; they never change an input. `check_only`: the function "module:name" is not called, for
    verbs whose valid inputs may take days. `made_by`: the file is what this command left when it
    was killed near its end (or, with `is_finished`, when it ended).
    """

    name: str
    commands: tuple[Command, ...]
    file: str | None = None
    change: Change | None = None
    arguments: SearchStrategy[Command] | None = None
    share: int = 1
    writes: tuple[str, ...] = OUTPUTS
    check_only: str = ""
    made_by: Command | None = None
    is_finished: bool = False


@dataclass(frozen=True)
class Input:
    """One input: the command, and what the kind's file holds (None: as it is)."""

    kind: str
    command: Command
    content: bytes | None = None


def inputs(kind: Kind, content: Callable[[str], bytes]) -> SearchStrategy[Input]:
    """Inputs of a kind; `content` reads the valid file."""
    commands = st.sampled_from(kind.commands)
    if kind.arguments is not None:
        more = kind.arguments.map(lambda some: tuple(map(_as_argument, some)))
        whole = st.tuples(commands, more).map(lambda both: (*both[0], *both[1]))
        return whole.map(lambda command: Input(kind.name, command))
    assert kind.file is not None
    assert kind.change is not None
    changed = kind.change(content(kind.file))
    return st.builds(Input, st.just(kind.name), commands, changed)


def _as_argument(text: str) -> str:
    """`text` without what no argument can hold: NUL, and surrogates that stand for no byte."""
    return re.sub("[\0\ud800-\udc7f\udd00-\udfff]", "", text)


def split(text: str) -> Command:
    return tuple(text.split())
