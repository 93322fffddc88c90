"""The files of an experiment are as their JSON schemas in the docs say."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from defuse.experiments.core.answers import Answer, Cell, from_json, to_json
from defuse.experiments.core.metrics import Answers
from defuse.experiments.core.results import rows
from defuse.store import SCHEMA_VERSION, ResultStore
from tests.helpers.answered import HURT, REFERENCE, answers, run
from tests.helpers.schemas import SCHEMAS, validate

IDENTITY = {
    **dict.fromkeys(("weights", "configuration", "tokenizer"), "0123"),
    "questions": "4567",
}
SETTINGS = {"experiment": "planets", "model": "my-model", "recipes": {}, "versions": {}}


def written(folder: Path, result: object, **about: object) -> dict[str, Any]:
    store = ResultStore(folder, IDENTITY)
    store.put("one", result, **about)
    return json.loads(store.path("one").read_text("utf-8"))


def results(**changes: object) -> dict[str, Any]:
    """A results.json with the rows of a reference, a retrained and an unlearned model."""
    found = rows(Answers({run(): {20: HURT, 40: HURT}}, REFERENCE, answers(forget=3)))
    head = {"schema_version": SCHEMA_VERSION, "experiment": "planets", "failed": {}}
    summary = {"groups": [], "defences": []}
    return {**head, "rows": list(found), "summary": summary, "settings": SETTINGS, **changes}


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_each_schema_is_a_schema_with_a_title(path: Path):
    schema = json.loads(path.read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["title"]
    assert schema["properties"]["schema_version"] == {"const": SCHEMA_VERSION}


def test_rows_of_results_are_as_the_schema_says():
    validate("results", results())


@pytest.mark.parametrize(
    "change",
    [
        {"method": "rmu"},  # of a reference model
        {"accuracy": 70},  # percent
        {"step": 20},
        {"model": "base"},
        {"n": 0},
    ],
    ids=str,
)
def test_another_row_is_refused(change: dict[str, Any]):
    changed = results()
    changed["rows"][0] |= change
    with pytest.raises(ValidationError):
        validate("results", changed)


def test_answers_are_as_the_schema_says(tmp_path: Path):
    asked = {"prompt": "The cat sees", "choices": ["a bird", "a tree"], "answer": 1}
    table = {Cell("forget"): {"q/1": Answer(True, -0.1, (-2.4, -0.1), asked)}}
    document = written(tmp_path, to_json(table), run="rmu-seed0", step=20, losses=[[1.5, 0.1]])
    validate("answers", document)
    assert from_json(document["result"]) == table
    validate("answers", written(tmp_path, to_json(HURT)))  # without texts


def test_records_are_as_the_schema_says(tmp_path: Path):
    head = {"run": "rmu-seed0", "versions": {"torch": "2.9"}, "seconds": 1.5}
    validate("record", written(tmp_path, {**head, "error": "no", "traceback": "…"}))
    validate("record", written(tmp_path, head))  # all answers were there already
    with pytest.raises(ValidationError):
        validate("record", written(tmp_path, {"run": "rmu-seed0"}))
