"""The records of an experiment's runs: seconds, losses and versions, or the error."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from defuse.store import ResultStore


def records(folder: Path) -> ResultStore:
    """The records of the experiment in `folder`, by the names of its runs.

    Those of version 0.1.0 have no identity.
    """
    return ResultStore(folder / "runs", read_old=lambda record: ({}, record))


def failures(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The error of each of these runs that failed."""
    known = ((name, records(folder).get(name) or {}) for name in names)
    return {name: record["error"] for name, record in known if "error" in record}


def print_failures(failed: Mapping[str, str], console: Console) -> None:
    """Print the error of each run, and how to run them again."""
    for name, sentence in failed.items():
        console.print(f"failed: {name}: {sentence}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} failed; --retry-failed runs them again")
