"""The run of `defuse evaluate`: one model at a time, and a result file for each."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from defuse.evaluate.evaluate import evaluate_parts
from defuse.evaluate.generation import generate
from defuse.evaluate.perplexity import perplexity
from defuse.evaluate.plan import Plan, unfinished
from defuse.evaluate.result_file import Report, document
from defuse.evaluate.resume import check_scores, held_together, open_scores
from defuse.models.load import LoadedModel, load_model
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.files import write_json
from defuse.utils.identity import model_identity
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import fingerprint


@dataclass(frozen=True)
class Results:
    """The reports of the models in their order, and of the reference model if there is one."""

    models: tuple[Report, ...]
    reference: Report | None = None


def run(plan: Plan, progress: Progress = SILENT, processes: Processes = ALONE) -> Results:
    """Evaluate every model of `plan`; the reference model comes first.

    A model's result file is written whole as soon as its report is there, and replaces a file of
    that name. Until all files are written, finished batches are kept in the folder "OUT.partial",
    from which the same plan resumes. `processes` share the batches of each model; the first process
    writes. `progress` has a stage for each model. Raises UsageError if another run uses `plan.out`,
    or left other work unfinished there.
    """
    reports: dict[str, Report] = {}
    with _reserved(plan, processes):
        for name in plan.all_models:
            reports[name] = _report(plan, name, progress, processes)
            if processes.is_first and name in plan.models:
                reference = reports.get(plan.reference or "")
                write_json(plan.file(name), _document(plan, reports[name], reference))
    reference = None if plan.reference is None else reports[plan.reference]
    return Results(tuple(reports[name] for name in plan.models), reference)


def _report(plan: Plan, name: str, progress: Progress, processes: Processes) -> Report:
    progress.start(f"{name}, questions", plan.count)
    loaded = load_model(name, device=plan.device, dtype=plan.dtype)
    identity = {
        "questions": plan.digest,
        **model_identity(loaded.model, loaded.tokenizer),
    }
    scores = open_scores(plan.scores(name), identity, processes)
    answers = evaluate_parts(
        loaded, plan.parts, plan.perturbation, progress=progress, scores=scores
    )
    return Report(
        answers,
        identity["precision"],
        str(loaded.model.device),
        fingerprint(loaded.model),
        loaded.commit,
        None if plan.text is None else perplexity(loaded, plan.text, scores, progress),
        None if plan.prompts is None else _generations(loaded, plan.prompts, progress),
    )


def _generations(
    loaded: LoadedModel, prompts: tuple[str, ...], progress: Progress
) -> dict[str, str]:
    progress.start(f"{loaded.name}, prompts", len(prompts))
    return dict(zip(prompts, generate(loaded, prompts, progress=progress), strict=True))


def _document(plan: Plan, report: Report, reference: Report | None) -> dict[str, object]:
    return document(report, reference, plan.sources, plan.groups, keep_text=plan.keep_text)


@contextmanager
def _reserved(plan: Plan, processes: Processes) -> Iterator[None]:
    """Keep other runs away from `plan.out`; remove the unfinished scores once all is written."""
    folders = [plan.scores(name) for name in plan.all_models]

    def check() -> None:
        for folder in folders:
            check_scores(folder, {"questions": plan.digest})

    with held_together(unfinished(plan.out), str(plan.out), check, processes):
        yield
        processes.wait()
        if processes.is_first:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
