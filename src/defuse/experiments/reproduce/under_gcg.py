"""The questions of MMLU under attack by GCG suffixes, which are searched to mislead.

The summary of arXiv 2501.19202 has an accuracy under attack, but says neither which questions were
attacked nor how; all 14042 would take months on one GPU. Here a given number of questions is
attacked, evenly spread over all, with the search of Zou et al. (2307.15043, `defuse.attacks.gcg`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from defuse.attacks import gcg, run
from defuse.attacks.data import RETAIN, AttackData
from defuse.attacks.results import Result
from defuse.data.sampling import spread as evenly
from defuse.evaluate import Settings
from defuse.evaluate.answers import Part
from defuse.evaluate.plan import unfinished
from defuse.experiments.reproduce.request import Effort, Request
from defuse.experiments.reproduce.table import Measured
from defuse.questions import Question
from defuse.utils.files import write_json
from defuse.utils.progress import SILENT, Labelled, Progress
from defuse.utils.provenance import versions

DETAILS = "mmlu-under-gcg.json"
Attacks = Mapping[str, run.Plan]  # by the name of the attacked model


def needs(effort: Effort) -> str:
    """What the row under attack needs if no question is attacked."""
    return (
        "--gcg N: how many questions to attack; each takes up to "
        f"{effort.steps} steps of {effort.width} suffixes"
    )


def spread(parts: Sequence[Part], count: int) -> list[Question]:
    """Take `count` questions, evenly spaced over all parts; all questions if there are fewer."""
    return evenly([question for part in parts for question in part.standing_alone()], count)


def check(request: Request, questions: Sequence[Question]) -> Attacks:
    """The attack on each model. Raises UsageError for what GCG refuses; no weights are read."""
    config = gcg.GCG(
        aims=("break",),
        modes=("question",),  # a suffix for each question that the model answers correctly
        steps=request.gcg.steps,
        search_width=request.gcg.width,
        questions=0,
        seed=request.seed,
    )
    # GCG requires a forget set too, on which nothing runs.
    data = AttackData(questions[:1], questions, Settings("letters", seed=request.seed))
    how = {"configs": {gcg.NAME: config}, "device": request.device, "dtype": request.dtype}
    return {
        name: run.check(run.Request(name, folder(request) / role, data=data, **how))
        for role, name in request.models.items()
    }


def folder(request: Request) -> Path:
    """The folder of what an unfinished attack has found."""
    return unfinished(request.out) / "gcg"


def measure(request: Request, attacks: Attacks, progress: Progress = SILENT) -> Measured:
    """Attack every model once, and write the attacks' details to a file of their own.

    Each step is on disk before the next one starts. Raises UsageError if the unfinished work
    belongs to other weights or another search.
    """
    results: dict[str, Result] = {}
    for name, plan in attacks.items():
        (results[name],) = run.run(plan, Labelled(progress, f"{name} under GCG"))
    found = {role: {"name": n, **results[n].as_json()} for role, n in request.models.items()}
    write_json(request.out / DETAILS, {**found, "versions": versions()})
    row = _figures(results[request.model])
    if request.reference is None:
        return row
    return replace(row, reference=_figures(results[request.reference]).model)


def _figures(result: Result) -> Measured:
    random, attacked = (condition.effects[RETAIN] for condition in result.conditions)
    after, before = attacked.after, attacked.before
    return Measured(after.n, after.accuracy, random.after.accuracy, before=before.accuracy)
