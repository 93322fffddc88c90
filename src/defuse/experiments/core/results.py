"""The file results.json: rows by model, step, question set and variant, and a summary."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from defuse.experiments.core.answers import Answer, AnswerTable
from defuse.experiments.core.defences import Defence
from defuse.experiments.core.metrics import Answers, Group
from defuse.statistics import wilson
from defuse.store import SCHEMA_VERSION

NO_RUN = {
    **dict.fromkeys(("method", "retain_loss", "defence", "defence_settings", "seed", "run")),
    "step": 0,
}


def document(
    answers: Answers,
    groups: Sequence[Group],
    defences: Sequence[Defence],
    failed: Mapping[str, str],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """All of results.json. `record`: what is needed to make the experiment again."""
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": record["experiment"],
        "rows": list(rows(answers)),
        "summary": {
            "groups": [_named(asdict(group)) for group in groups],
            "defences": [_named(asdict(defence)) for defence in defences],
        },
        "failed": failed,
        "settings": record,
    }


def _named(value: Any) -> Any:  # noqa: ANN401 (mappings of intervals)
    """The same with text for slices: "retain/forget_token/before"."""
    if not isinstance(value, dict):
        return value
    return {
        "/".join(filter(None, key)) if isinstance(key, tuple) else key: _named(each)
        for key, each in value.items()
    }


def rows(answers: Answers) -> Iterator[dict[str, Any]]:
    """A row for every cell of every table, with Wilson's interval.

    `logprob`: the mean log-probability of the right choice among the choices (nats).
    """
    yield from _rows({"model": "reference", **NO_RUN}, answers.reference)
    if answers.retrained is not None:
        yield from _rows({"model": "retrained", **NO_RUN}, answers.retrained)
    for run, steps in answers.finished.items():
        about = {
            "model": "unlearned",
            **{name: getattr(run, name) for name in ("method", "retain_loss", "defence")},
            "defence_settings": dict(run.defence_settings),
            "seed": run.seed,
            "run": run.name,
        }
        for step, table in steps.items():
            yield from _rows({**about, "step": step}, table)


def _rows(about: Mapping[str, Any], table: AnswerTable) -> Iterator[dict[str, Any]]:
    for cell, answers in table.items():
        yield {**about, **cell._asdict(), **figures(answers)}


def figures(answers: Mapping[Any, Answer]) -> dict[str, Any]:
    """The number of questions, how many are right, accuracy with its interval, log-probability."""
    right = sum(answer.correct for answer in answers.values())
    interval = wilson(right, len(answers))
    return {
        "n": len(answers),
        "correct": right,
        "accuracy": interval.value,
        "low": interval.low,
        "high": interval.high,
        "logprob": round(fmean(answer.logprob for answer in answers.values()), 6),
    }
