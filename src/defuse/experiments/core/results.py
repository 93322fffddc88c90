"""The rows of results.json: one for each model, step, question set and variant."""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from defuse.experiments.core.answers import Answer, AnswerTable
from defuse.experiments.core.metrics import Checkpoints
from defuse.experiments.core.scenario import Run
from defuse.statistics import wilson

NO_RUN = {
    "method": None,
    "retain_loss": None,
    "defence": None,
    "defence_settings": None,
    "seed": None,
    "run": None,
    "step": 0,
}


def rows(
    finished: Mapping[Run, Checkpoints], reference: AnswerTable, retrained: AnswerTable | None
) -> Iterator[dict[str, Any]]:
    """A row for every cell of every table, with Wilson's interval.

    `logprob`: the mean log-probability of the right choice among the choices (nats).
    """
    yield from _rows({"model": "reference", **NO_RUN}, reference)
    if retrained is not None:
        yield from _rows({"model": "retrained", **NO_RUN}, retrained)
    for run, steps in finished.items():
        about = {
            "model": "unlearned",
            "method": run.method,
            "retain_loss": run.retain_loss,
            "defence": run.defence,
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
