"""One call of `defuse evaluate`: everything checked, then a model at a time."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defuse.evaluate.answers import Part
from defuse.evaluate.evaluate import evaluate_parts
from defuse.evaluate.generation import generate
from defuse.evaluate.groups import Groups
from defuse.evaluate.loglikelihood import OnScored
from defuse.evaluate.perplexity import perplexity
from defuse.evaluate.result_file import Report, document
from defuse.evaluate.resume import Journal, held_together
from defuse.models.architectures import architecture_of
from defuse.models.load import load_config, load_model, locate, resolve_device, resolve_dtype
from defuse.questions import Perturbation
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError
from defuse.utils.files import check_name, check_writable, write_json
from defuse.utils.provenance import fingerprint

OnModel = Callable[[str, int], OnScored]  # a model's name and its number of questions


@dataclass(frozen=True)
class Job:
    """What is asked of which models; `out` is a file for one model, a folder for several.

    `groups`: subjects whose accuracy is given together, by the group's name. `sources`: where
    questions and tokens came from, for the record.
    """

    models: tuple[str, ...]
    out: Path
    parts: tuple[Part, ...]
    perturbation: Perturbation | None = None
    base: str | None = None
    groups: Groups = field(default_factory=dict)
    text: str | None = None
    prompts: tuple[str, ...] | None = None
    device: str = "auto"
    dtype: str = "auto"
    sources: Mapping[str, Any] = field(default_factory=dict)


def check(job: Job) -> None:
    """Raise UsageError for what cannot be run or written, before any weights are read."""
    _check_out(job)
    resolve_device(job.device)
    resolve_dtype(job.dtype)
    for name in _all_models(job):
        architecture_of(load_config(locate(name)).model_type)


def run(job: Job, on_model: OnModel, processes: Processes = ALONE) -> Iterator[tuple[Report, bool]]:
    """Every model's report as it comes, and whether it is the base's, which comes first.

    A model's file is written, whole, as soon as its report is there; a file of that name is
    replaced. Until all files are written, finished batches are kept in a folder "OUT.partial", and
    the same job goes on from there after a kill. `processes` share each model's batches; the first
    writes. `on_model` gives what is told of a model's progress.
    Raises UsageError if another job is under way for `out`, or left unfinished there.
    """
    base = None
    with _reserved(job, processes):
        if job.base is not None:
            base = _report(job, job.base, on_model, processes)
            yield base, True
        for name in job.models:
            report = base if base and name == job.base else _report(job, name, on_model, processes)
            if processes.is_first:
                write_json(_file_of(job, name), document(report, base, job.sources, job.groups))
            yield report, False


def _report(job: Job, name: str, on_model: OnModel, processes: Processes) -> Report:
    on_scored = on_model(name, sum(len(part.questions) for part in job.parts))
    loaded = load_model(name, device=job.device, dtype=job.dtype)
    precision = str(loaded.model.dtype).removeprefix("torch.")
    weights = fingerprint(loaded.model)
    made_on = {"weights": weights, "precision": precision, "device": loaded.model.device.type}
    ledger = _journal(job, name).open({"questions": _digest(job), **made_on}, processes)
    prompts = job.prompts
    return Report(
        evaluate_parts(loaded, job.parts, job.perturbation, on_scored=on_scored, ledger=ledger),
        precision,
        str(loaded.model.device),
        weights,
        loaded.commit,
        None if job.text is None else perplexity(loaded, job.text, ledger),
        None if prompts is None else dict(zip(prompts, generate(loaded, prompts), strict=True)),
    )


@contextmanager
def _reserved(job: Job, processes: Processes) -> Iterator[None]:
    """Keep other jobs from `out`, and tidy up what was kept for resuming once all is written."""
    journals = [_journal(job, name) for name in _all_models(job)]

    def check_journals() -> None:
        for journal in journals:
            journal.check({"questions": _digest(job)})

    with held_together(partial(job.out), str(job.out), check_journals, processes):
        yield
        processes.wait()
        if processes.is_first:
            for journal in journals:
                journal.remove()


def partial(out: Path) -> Path:
    """The folder beside `out` for what is under way."""
    return out.with_name(f"{out.name}.partial")


def _digest(job: Job) -> str:
    """What is asked, and how."""
    return _hash(repr((job.parts, job.perturbation)))


def _journal(job: Job, model: str) -> Journal:
    # "a/b" and "../a/b" are two models of one safe name.
    return Journal(partial(job.out) / f"{_safe(model)}-{_hash(model)[:8]}")


def _all_models(job: Job) -> Sequence[str]:
    return job.models if job.base is None else (job.base, *job.models)


def _check_out(job: Job) -> None:
    several = len(job.models) > 1
    if several and (job.out.suffix == ".json" or job.out.is_file()):
        raise UsageError(f"out: {job.out} is one file for {len(job.models)} models; give a folder")
    if not several and job.out.is_dir():
        raise UsageError(f"out: {job.out} is a folder; give the name of a .json file")
    files = [_file_of(job, name) for name in job.models]
    if len(set(files)) < len(files):
        raise UsageError("MODEL: two of the models have the same name; give each once")
    for file in files:
        check_name(file, "out")
    check_writable(files[0].parent, "out")


def _file_of(job: Job, name: str) -> Path:
    if len(job.models) == 1:
        return job.out
    return job.out / f"{_safe(name)}.json"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")
