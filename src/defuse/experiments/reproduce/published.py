"""The perturbed questions that the paper's authors published, in place of those made here.

They have the columns of `cais/mmlu`. Only they are asked: nobody published their controls.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from defuse.data.hub import config_names
from defuse.data.readers import CARD
from defuse.evaluate.answers import Part, Settings
from defuse.evaluate.plan import Plan
from defuse.evaluate.result_file import Report
from defuse.evaluate.run import Results
from defuse.evaluate.sources import Asking
from defuse.evaluate.tasks import SUITES, load_parts
from defuse.evaluate.tasks.load import local_folder
from defuse.experiments.reproduce.request import Request
from defuse.experiments.reproduce.table import Measured
from defuse.questions import ORIGINAL, Question, load_questions
from defuse.statistics import Interval, wilson
from defuse.utils.errors import UsageError

NAME = "mmlu-perturbed-published"  # of the evaluation and its file
MMLU = SUITES["mmlu"]
ALL = "all"  # the configuration of `cais/mmlu` with the questions of all subjects


def load_published(source: str, asking: Asking) -> list[Part]:
    """The questions of a file, a folder like MMLU's, or a hub dataset like `cais/mmlu`, by subject.

    Without a configuration for each subject, the column `subject` says which one a question has.
    Raises UsageError, naming the option, for what cannot be read.
    """
    try:
        if Path(source).is_file():
            return _by_subject(load_questions(source), asking)
        configs = _configs(source)
        if configs is None or MMLU.subjects[0].config in configs:
            return load_parts(MMLU, source, asking)
        return _by_subject(load_questions(f"{source}:{ALL}" if ALL in configs else source), asking)
    except UsageError as error:
        raise UsageError(f"perturbed: {error}") from error


def _configs(source: str) -> Sequence[str] | None:
    """The configurations of a hub dataset, perhaps downloaded; None for a folder of files."""
    folder = local_folder(source)
    return None if folder and not (folder / CARD).is_file() else config_names(source)


def _by_subject(questions: Sequence[Question], asking: Asking) -> list[Part]:
    """Each subject's questions, at most `asking.limit` of them, under its description line."""
    ordered = sorted(questions, key=lambda question: question.subject or "")
    return [
        Part(tuple(found)[: asking.limit], Settings(subject=subject, seed=asking.seed))
        for subject, found in groupby(ordered, key=lambda question: question.subject)
    ]


def evaluation(request: Request, parts: Sequence[Part]) -> Plan:
    """What is to be asked of the request's models."""
    return Plan(
        models=(request.model,),
        out=request.out / f"{NAME}.json",
        parts=tuple(parts),
        reference=request.reference,
        device=request.device,
        dtype=request.dtype,
        sources={"questions": request.perturbed, "limit": request.limit},
    )


def measured(results: Results) -> Measured:
    """The row's figures: there is no control."""
    (model,), reference = results.models, results.reference
    correct = model.evaluation.correct(ORIGINAL)
    own = None if reference is None else _accuracy(reference)
    return Measured(len(correct), _accuracy(model), reference=own)


def _accuracy(report: Report) -> Interval:
    correct = report.evaluation.correct(ORIGINAL)
    return wilson(sum(correct), len(correct))
