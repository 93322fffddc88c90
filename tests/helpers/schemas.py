"""JSON schemas of the docs, and a check that a file is as its schema says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def validate(name: str, document: Mapping[str, Any]) -> None:
    """Raise jsonschema's ValidationError for a document that is not as the schema `name` says."""
    schema = json.loads((SCHEMAS / f"{name}.json").read_text("utf-8"))
    Draft202012Validator(schema).validate(document)
