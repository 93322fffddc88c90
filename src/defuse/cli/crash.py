"""The report of an error that nobody foresaw."""

import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from defuse.utils.distribution import DISTRIBUTION

PACKAGES = (DISTRIBUTION, "torch", "transformers", "safetensors", "datasets", "peft", "numpy")
RUNS = Path("runs")  # where recipes write by default
MOST_RECIPE_BYTES = 2**20
# A field whose value is a secret, and the hub's tokens wherever they are.
SECRET = re.compile(r"(?im)^(\s*[\w.-]*(?:token|secret|password|api_?key)[\w.-]*\s*[:=]\s*).+$")
HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")


def write_report(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write the report and return its path; None where no place can be written."""
    text = _report(error, arguments)
    name = f"crash-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    for folder in (RUNS, Path(tempfile.gettempdir())):
        if folder.is_dir():
            try:
                (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            except OSError:  # read-only, or full
                continue
            return folder / name
    return None


def _report(error: BaseException, arguments: Sequence[str]) -> str:
    trace = "".join(traceback.format_exception(error))
    parts = [
        f"command: defuse {' '.join(arguments)}",
        f"python {platform.python_version()} on {platform.platform()}",
        *(f"{name} {_version(name)}" for name in PACKAGES),
        "",
        trace,
        *(f"{path}:\n{text}" for path, text in _recipes(arguments)),
    ]
    return without_secrets("\n".join(parts))


def without_secrets(text: str) -> str:
    """`text` without the values of fields such as `hf_token`, and without hub tokens."""
    return HUB_TOKEN.sub("hf_…", SECRET.sub(r"\1…", text))


def _recipes(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """The recipes and experiments that the command names."""
    found = []
    for argument in arguments:
        path = Path(argument)
        try:
            if path.suffix in (".yaml", ".yml") and path.stat().st_size <= MOST_RECIPE_BYTES:
                found.append((argument, path.read_text(encoding="utf-8", errors="replace")))
        except OSError:
            continue
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"


def sentence(error: BaseException, report: Path | None) -> str:
    """What is said on the screen."""
    reason = (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
    where = f"{report} has the details" if report else "run it again with --debug for the details"
    return (
        f"an error that should not happen ({type(error).__name__}: {reason}); {where}: please "
        "report it with that file. What is finished is kept"
    )


def shows_traceback(arguments: list[str]) -> bool:
    """Whether `--debug` is among the arguments; takes it out of them."""
    asked = "--debug" in arguments
    arguments[:] = [each for each in arguments if each != "--debug"]
    return asked


def prepare_streams() -> None:
    """Let output that cannot be written cost nothing: closed streams, and letters they lack."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller (`>&-`)
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
