"""One call of `defuse evaluate`: everything checked, then a model at a time."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defuse.architectures import architecture_of
from defuse.corpora import load_texts
from defuse.errors import UsageError
from defuse.evaluate.document import Report, document
from defuse.evaluate.results import Settings
from defuse.evaluate.robustness import evaluate_questions
from defuse.evaluate.scorer import OnScored
from defuse.evaluate.text import generate, perplexity
from defuse.files import check_name, check_writable, write_json
from defuse.models import (
    load_config,
    load_model,
    load_tokenizer,
    locate,
    resolve_device,
    resolve_dtype,
)
from defuse.questions import (
    SENTENCE,
    Perturbation,
    Position,
    Question,
    draw_controls,
    load_questions,
    load_tokens,
)

OnModel = Callable[[str], OnScored]


@dataclass(frozen=True)
class Job:
    """What is asked of which models; `out` is a file for one model, a folder for several.

    `sources`: where questions and tokens came from, for the record.
    """

    models: tuple[str, ...]
    out: Path
    questions: tuple[Question, ...]
    settings: Settings
    perturbation: Perturbation | None = None
    base: str | None = None
    text: str | None = None
    prompts: tuple[str, ...] | None = None
    device: str = "auto"
    dtype: str = "auto"
    sources: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenFiles:
    """Where perturbing tokens come from: files of tokens, or a corpus to draw controls from."""

    forget: str
    control: str | None = None
    control_corpus: str | None = None


def check(job: Job) -> None:
    """Raise UsageError for what cannot be run or written, before any weights are read."""
    if job.base is not None and (job.perturbation is None or not job.perturbation.controls):
        raise UsageError(
            "base: vulnerability needs perturbed questions and controls; give --perturb, and "
            "--control or --control-corpus"
        )
    _check_out(job)
    resolve_device(job.device)
    resolve_dtype(job.dtype)
    for name in _all_models(job):
        architecture_of(load_config(locate(name)).model_type)


def run(job: Job, on_model: OnModel) -> Iterator[tuple[Report, bool]]:
    """Every model's report as it comes, and whether it is the base's, which comes first.

    A model's file is written, whole, as soon as its report is there; a file of that name is
    replaced. `on_model` is told each model's name and gives what is told of its progress.
    """
    base = None
    if job.base is not None:
        base = _report(job, job.base, on_model)
        yield base, True
    for name in job.models:
        report = base if base and name == job.base else _report(job, name, on_model)
        write_json(_file_of(job, name), document(report, base, job.sources))
        yield report, False


def few_shot_examples(dev: str | None, count: int, subject: str | None) -> tuple[Question, ...]:
    """The first `count` questions of `dev`. Raises UsageError where there are not as many."""
    if count < 0:
        raise UsageError(f"few-shot: is {count}; give 0 or more")
    if count == 0:
        if dev is not None:
            raise UsageError(f"dev: {dev} is not used without --few-shot; say how many to take")
        return ()
    if dev is None:
        raise UsageError(f"dev: missing; give --dev FILE for --few-shot {count}")
    examples = load_questions(dev, subject=subject, limit=count, split="dev")
    if len(examples) < count:
        raise UsageError(f"few-shot: is {count}, but {dev} has {len(examples)}; give fewer")
    return examples


def build_perturbation(
    files: TokenFiles, position: Position, sentence: str | None, model: str, seed: int
) -> Perturbation:
    """Forget-tokens with controls, read, or drawn to match by `model`'s tokenizer."""
    if (files.control is None) == (files.control_corpus is None):
        raise UsageError(
            "control: every perturbation runs with its controls; give one of --control FILE and "
            "--control-corpus FILE to draw them from"
        )
    if sentence is not None and position != "before":
        raise UsageError(f"sentence: goes with --position before, not {position}; leave it out")
    tokens = load_tokens(files.forget)
    if files.control is not None:
        controls = load_tokens(files.control)
    else:
        texts = map(str, load_texts(files.control_corpus or ""))
        controls = draw_controls(tokens, texts, load_tokenizer(locate(model)), seed)
    return Perturbation(tokens, position, controls, sentence or SENTENCE)


def _report(job: Job, name: str, on_model: OnModel) -> Report:
    on_scored = on_model(name)
    loaded = load_model(name, device=job.device, dtype=job.dtype)
    prompts = job.prompts
    return Report(
        evaluate_questions(
            loaded, job.questions, job.settings, job.perturbation, on_scored=on_scored
        ),
        str(loaded.model.dtype).removeprefix("torch."),
        str(loaded.model.device),
        getattr(loaded.model.config, "_commit_hash", None),
        None if job.text is None else perplexity(loaded, job.text),
        None if prompts is None else dict(zip(prompts, generate(loaded, prompts), strict=True)),
    )


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
    return job.out / (re.sub(r"[^\w.-]+", "-", name).strip("-.") + ".json")
