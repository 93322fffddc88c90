"""Folders of sweeps that version 0.1.0 wrote: answers are in runs' records and in base.json."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from defuse.experiments.core.run import OLD_NAMES, REFERENCE, step_name
from defuse.experiments.core.scenario import Run
from defuse.unlearning.recipe import Recipe
from defuse.utils.config import parse
from defuse.utils.files import write_json
from defuse.utils.json_text import parse_json


def adopt(folder: Path, runs: Sequence[Run]) -> None:
    """Put records and answers where other experiments of version 0.1.0 have them.

    A record belongs to the run with the same recipe, whose name was another one then.
    """
    base = folder / "base.json"
    if base.is_file():
        (folder / "answers").mkdir(exist_ok=True)
        base.replace(folder / "answers" / f"{OLD_NAMES[REFERENCE]}.json")
    for path in (folder / "runs").glob("*.json"):
        try:
            record = parse_json(path.read_text(encoding="utf-8"))
            if "schema_version" in record:
                continue
            recipe = parse(Recipe, record["recipe"])
        except (ValueError, LookupError, TypeError):  # damaged: refused when it is read as a record
            continue
        for run in runs:
            if replace(recipe, output=run.recipe.output) == run.recipe:
                _move(path, record, run)


def _move(path: Path, record: Mapping[str, Any], run: Run) -> None:
    if "answers" in record:
        found = {name: record[name] for name in ("recipe", "answers")}
        answers = path.parents[1] / "answers" / run.name
        write_json(answers / f"{step_name(run.steps)}.json", found)
    path.replace(path.with_name(f"{run.name}.json"))
