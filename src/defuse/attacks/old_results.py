"""Reader of the result files that version 0.1.0 wrote."""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from defuse.attacks.data import AttackData
from defuse.evaluate import Settings
from defuse.questions import Question, Replaced

# Conditions that stand in tables of several models: in all attacks that are not named, every one.
HEADLINES = {
    "lens": ".*, chosen layer",
    "orthogonalise": "(all|strongest|weights)(, random direction)?|each, chosen layer",
    "rephrase": "vote over (orders|all ways)|best way, .*",
    "triggers": "worst of .*|all .*",
    "gcg": "random suffix|.*, (held out|each question)",
    "relearn": "(forget|retain), .*",
}
CONTROLS = r"random suffix|.*, random( direction)?|(worst of|all) \d+ controls.*"


def read_old(
    document: Mapping[str, Any],
    data: AttackData | None = None,
    questions: str = "",
    weights: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a file's identity and its result as this version writes them.

    `questions`: the identity's value for `data`, if the file is about the same questions.
    `weights`: the identity's value for each hash of a model that the file may hold.
    """
    about, result = dict(document["about"]), dict(document["result"])
    if "gold" in about:
        about["retrained"] = about.pop("gold")
    if data is not None and about["questions"] == _digest(data):
        about["questions"] = questions
    for part in ("weights", "reference", "retrained"):
        if part in about:
            about[part] = (weights or {}).get(about[part], about[part])
    result["attack"] = result.pop("kind")
    result["conditions"] = [_condition(result["attack"], each) for each in result["conditions"]]
    return about, result


def _condition(attack: str, found: Mapping[str, Any]) -> dict[str, Any]:
    name = found["name"]
    return {
        **found,
        "headline": re.fullmatch(HEADLINES.get(attack, ".*"), name) is not None,
        "is_control": re.fullmatch(CONTROLS, name) is not None,
    }


def _digest(data: AttackData) -> str:
    """The digest of questions and settings as version 0.1.0 computed it, from their `repr`."""
    sets = ", ".join(f"[{', '.join(map(_question, each))}]" for each in data.sets.values())
    return sha256(f"[{sets}, {_settings(data.settings)}]".encode()).hexdigest()


def _settings(settings: Settings) -> str:
    few_shot = [_question(each) for each in settings.few_shot]
    comma = "," if len(few_shot) == 1 else ""
    return (
        f"Settings(score={settings.score!r}, subject={settings.subject!r}, "
        f"few_shot=({', '.join(few_shot)}{comma}), seed={settings.seed!r}, "
        f"token_budget={settings.token_budget!r})"
    )


def _question(question: Question) -> str:
    return (
        f"Question(id={question.id!r}, stem={question.stem!r}, choices={question.choices!r}, "
        f"answer={question.answer!r}, subject={question.subject!r}, prompt={question.prompt!r}, "
        f"before={question.before!r}, replaced={_replaced(question.replaced)})"
    )


def _replaced(replaced: Replaced | None) -> str:
    if replaced is None:
        return "None"
    return (
        f"Replaced(position={replaced.position!r}, token={replaced.token!r}, "
        f"index={replaced.index!r}, original={replaced.original!r}, foreign={replaced.foreign!r})"
    )
