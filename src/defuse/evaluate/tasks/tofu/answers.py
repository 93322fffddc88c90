"""Files of answers to TOFU's questions."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from defuse.evaluate.tasks.tofu.ask import Answered, Sets
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json
from defuse.utils.json_text import parse_json
from defuse.utils.provenance import versions


def write_answers(
    path: Path, sets: Sets, about: Mapping[str, Any], summary: Mapping[str, Any]
) -> None:
    """Write answers whole, with what was asked and the figures."""
    answers = {name: [asdict(each) for each in own] for name, own in sets.items()}
    head = {"about": about, "summary": summary, "versions": versions()}
    write_json(path, {**head, "sets": answers})


def read_answers(path: Path) -> Sets:
    """Read the answers of `defuse evaluate`, or of `defuse tofu`. Raises UsageError for others."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        return sets_from_json(document.get("result", document)["sets"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: has no answers to TOFU's questions ({error})") from error


def sets_from_json(sets: Mapping[str, Any]) -> Sets:
    """Answers from JSON values."""
    return {
        name: [Answered(**{**each, "perturbed": tuple(each["perturbed"])}) for each in answers]
        for name, answers in sets.items()
    }
