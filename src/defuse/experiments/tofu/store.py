"""Answers on disk: a file for each model, written once and whole."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from defuse.experiments.tofu.ask import Answered, BehindName
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json
from defuse.utils.provenance import versions


@dataclass(frozen=True)
class Sheet:
    """What one model answered: each set's questions, and kept questions behind names."""

    sets: Mapping[str, Sequence[Answered]]
    names: Sequence[BehindName] = ()


def write_sheet(
    path: Path, sheet: Sheet, about: Mapping[str, Any], summary: Mapping[str, Any] | None = None
) -> None:
    """Write answers with what they belong to, and perhaps figures."""
    figures = {} if summary is None else {"summary": summary}
    write_json(path, {"about": about, **figures, "versions": versions(), **asdict(sheet)})


def read_sheet(path: Path) -> Sheet:
    """A file's answers. Raises UsageError for a file that holds none."""
    return _read(path)[0]


def known_sheet(path: Path, about: Mapping[str, Any]) -> Sheet | None:
    """The answers in `path`, if they are there.

    Raises UsageError where they belong to something else.
    """
    if not path.exists():
        return None
    sheet, found = _read(path)
    about = json.loads(json.dumps(about))
    if other := [name for name in {**found, **about} if found.get(name) != about.get(name)]:
        raise UsageError(
            f"output: {path} holds answers with other {', '.join(other)}; name a new folder"
        )
    return sheet


def _read(path: Path) -> tuple[Sheet, dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sets = {
            name: [Answered(**{**each, "perturbed": tuple(each["perturbed"])}) for each in answers]
            for name, answers in found["sets"].items()
        }
        return Sheet(sets, [BehindName(**each) for each in found["names"]]), found["about"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: holds no answers to TOFU's questions ({error})") from error
