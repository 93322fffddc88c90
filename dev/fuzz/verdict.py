"""Whether a command treated an input as promised."""

import re
import signal
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

from defuse.utils.text import STEERING
from dev.forks import PREFIX, Ending

LONGEST = 1200  # characters of a sentence
OWN_USAGE = re.compile(r"^(Usage: |╭─ Error)", re.MULTILINE)  # of the command line's library
SIGNALS = {signal.SIGXCPU: "takes more than 10 s", signal.SIGKILL: "hangs"}
Files = Mapping[str, str]


def verdict(ending: Ending, before: Files, after: Files, writes: Sequence[str]) -> str:
    """What was wrong, in a few words; nothing if the input was refused or read as promised.

    `before` and `after`: the hashes of all files. `writes`: patterns of what may be written.
    """
    printed = ending.printed
    if ending.code < 0:
        number = signal.Signals(-ending.code)
        return SIGNALS.get(number, f"ends by {number.name}")
    if "Traceback (most recent call last)" in printed or "should not happen" in printed:
        return f"crash: {ending.last_line}"
    if ending.code not in (0, 2):
        return f"exit code {ending.code}: {ending.last_line}"
    if STEERING.search(printed.replace("\r\n", "\n")) and not OWN_USAGE.search(ending.err):
        return "control characters on the screen"
    if ending.code == 2 and (wrong := _refusal(ending.err)):
        return wrong
    for name in sorted({*before, *after}):
        is_own = any(fnmatch(name, pattern) for pattern in writes)
        if before.get(name) != after.get(name) and not is_own:
            return f"{name} was written"
    return ""


def _refusal(err: str) -> str:
    """What is wrong with a refusal's sentence."""
    if OWN_USAGE.search(err):
        return ""
    lines = err.rstrip("\n").split("\n")
    sentences = [line for line in lines if line.startswith(PREFIX)]
    if len(sentences) != 1 or lines[-1] != sentences[0]:
        return f"no single sentence: {lines[-1][:200]}"
    if len(sentences[0]) > LONGEST:
        return f"a sentence of {len(sentences[0])} characters: {sentences[0][:100]}"
    if ";" not in sentences[0] and ":" not in sentences[0][len(PREFIX) :]:
        return f"no field or remedy: {sentences[0][:200]}"
    return ""


def read_files(folder: Path) -> dict[str, str]:
    """The hash of every file in `folder`, by name."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in paths}
