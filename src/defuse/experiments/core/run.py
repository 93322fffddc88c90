"""One run: unlearn, ask at every checkpoint, and keep each checkpoint's answers at once."""

import shutil
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from defuse.evaluate.check_up import CheckUp, check_up
from defuse.evaluate.token_tree import TokenPair
from defuse.experiments.core.answers import AnswerTable, from_json, from_old_json, to_json
from defuse.experiments.core.check_up import checked_up
from defuse.experiments.core.questions import Stage, ask_model
from defuse.experiments.core.records import records
from defuse.experiments.core.scenario import Run, Scenario
from defuse.models.file_identity import file_identity
from defuse.models.load import LoadedModel, load_model, resolve_dtype
from defuse.models.locate import locate
from defuse.models.partial_load import find_checkpoint
from defuse.store import ReadOld, ResultStore
from defuse.unlearning.activation_cache import ActivationCache
from defuse.unlearning.output import Source, make_record, write_checkpoint
from defuse.unlearning.recipe_identity import TextDigests, essence, recipe_essence
from defuse.unlearning.run import check
from defuse.unlearning.train import Result, StepRecord, unlearn
from defuse.utils.errors import UsageError
from defuse.utils.files import full_disk
from defuse.utils.identity import model_identity
from defuse.utils.json_text import parse_json
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import versions

REFERENCE, RETRAINED = "reference", "retrained"
# The reference model's and the retrained model's file in version 0.1.0.
OLD_NAMES = {REFERENCE: "base", RETRAINED: "gold"}
MOST_SHARED_BYTES = 1.5 * 2**30  # of activations; beyond that, other runs' are dropped


@dataclass
class ExperimentContext:
    """What all runs of one process share: the scenario, the reference model, encoded prompts."""

    scenario: Scenario
    digests: TextDigests = field(default_factory=TextDigests)
    _cache: ActivationCache = field(default_factory=ActivationCache)
    _identities: dict[str, dict[str, Any]] = field(default_factory=dict)
    _encoded: dict[str, list[list[TokenPair]]] = field(default_factory=dict)

    @cached_property
    def reference(self) -> LoadedModel:
        """The model before unlearning, loaded once."""
        source = self.scenario.model
        how = {"device": source.device, "dtype": source.dtype, "revision": source.revision}
        return load_model(source.name, **how)

    @cached_property
    def check_up(self) -> CheckUp:
        """The reference model's check-up, done once."""
        return check_up(self.reference, write=False)

    @cached_property
    def model_identity(self) -> dict[str, str]:
        """All that the reference model's answers depend on beside the questions."""
        whole = model_identity(self.reference.model, self.reference.tokenizer)
        # Answers on another kind of device differ in rounding alone.
        return {name: value for name, value in whole.items() if name != "device"}

    def run_identity(self, run: Run) -> dict[str, Any]:
        """What a run's results depend on, besides the model and the questions."""
        if run.name not in self._identities:
            self._identities[run.name] = {
                "recipe": recipe_essence(run.recipe),
                "texts": self.digests.of(run.recipe),
                **dict(run.essence),
            }
        return self._identities[run.name]

    @cached_property
    def set_of(self) -> dict[str, str]:
        """The question set of each question, by its id."""
        prompts = self.scenario.questions["reported"].prompts
        return {question.id: cell.question_set for cell, question in prompts}

    def shared_cache(self) -> ActivationCache | None:
        """The activations of earlier runs, unless they take too much memory."""
        if not self.scenario.share_activations:
            return None
        if self._cache.nbytes > MOST_SHARED_BYTES:
            self._cache.clear()
        return self._cache

    def ask(
        self, loaded: LoadedModel, questions: str, stage: Stage, progress: Progress = SILENT
    ) -> AnswerTable:
        """The answers of a model to one of the scenario's question lists."""
        asked = self.scenario.questions[questions]
        return ask_model(
            loaded,
            asked.probes(stage),
            keep_text=asked.keep_text,
            encoded=self._encoded,
            progress=progress,
        )


def answers_store(context: ExperimentContext, run: Run, step: int) -> ResultStore:
    """The store of a run's answers at a checkpoint."""
    questions = context.scenario.questions[run.questions].digest(run.stage(step))
    identity = {**context.model_identity, "questions": questions, **context.run_identity(run)}
    folder = context.scenario.folder / "answers" / run.name
    return ResultStore(folder, identity, read_old=_reader(context))


def _reader(context: ExperimentContext) -> ReadOld:
    """Reads answers as version 0.1.0 wrote them."""

    def read(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
        identity = {name: document[name] for name in ("recipe", "setting") if name in document}
        if "recipe" in identity:
            identity["recipe"] = essence(identity["recipe"])
        return identity, to_json(from_old_json(document["answers"], context.set_of))

    return read


def step_name(step: int) -> str:
    """The name of a checkpoint's answers."""
    return f"step-{step:04}"


def load_answers(context: ExperimentContext, run: Run) -> dict[int, AnswerTable]:
    """The answers of a run's checkpoints by step, as far as they are there."""
    found = {}
    for step in run.checkpoints:
        cells = answers_store(context, run, step).get(step_name(step))
        if cells is not None:
            found[step] = from_json(cells)
    return found


def missing_steps(context: ExperimentContext, run: Run) -> tuple[int, ...]:
    """The checkpoints of a run that have no answers. Raises UsageError for foreign answers."""
    known = load_answers(context, run)
    return tuple(step for step in run.checkpoints if step not in known)


def other_answers(
    context: ExperimentContext, name: str, progress: Progress = SILENT
) -> AnswerTable:
    """The answers of the `REFERENCE` or the `RETRAINED` model, asked once."""
    scenario = context.scenario
    asked = scenario.questions["reported"]
    identity = {**_identity(context, name), "questions": asked.digest("final")}
    store = ResultStore(scenario.folder / "answers", identity, read_old=_reader(context))
    old = store.path(OLD_NAMES[name])
    if old.is_file() and not store.path(name).is_file():
        name = OLD_NAMES[name]

    def ask() -> list[dict[str, Any]]:
        progress.start(f"asking the {name} model", sum(len(p.groups) for p in asked.final))
        loaded = _other(context, name)
        return to_json(context.ask(loaded, "reported", "final", progress=progress))

    return from_json(store.get_or_compute(name, ask))


def _identity(context: ExperimentContext, name: str) -> Mapping[str, str]:
    if name == REFERENCE:
        return context.model_identity
    return file_identity(locate(str(context.scenario.retrained)))


def _other(context: ExperimentContext, name: str) -> LoadedModel:
    scenario = context.scenario
    if name == REFERENCE:
        return context.reference
    source = scenario.model
    return load_model(str(scenario.retrained), device=source.device, dtype=source.dtype)


def execute(context: ExperimentContext, run: Run, progress: Progress = SILENT) -> dict[str, Any]:
    """Unlearn and ask at every checkpoint without answers; returns the run's record.

    A checkpoint's answers are on disk before training continues. After a stop the run trains again
    from its start and asks only what is missing.
    """
    return recorded(run.name, lambda: _unlearn_and_ask(context, run, progress))


def recorded(name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Carry out `work`; returns its result as a record, with versions, machine and seconds.

    If it fails, the record has the `error`, so that other runs continue. Raises OSError where the
    disk is full: that is no run's own failure, and the same command continues once there is room.
    """
    started = time.perf_counter()
    try:
        found = work()
    except Exception as error:
        if (full := full_disk(error)) is not None:
            raise full from error
        found = {"error": _sentence(error), "traceback": traceback.format_exc()}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # memory that a failed run filled must not fail the next
    seconds = time.perf_counter() - started
    about = {"versions": versions(), "host": socket.gethostname()}
    return {"run": name, **about, **found, "seconds": seconds}


def _unlearn_and_ask(context: ExperimentContext, run: Run, progress: Progress) -> dict[str, Any]:
    missing = missing_steps(context, run)
    if not (missing or must_write(context, run) or must_record(context, run)):
        return {}
    reference, recipe = context.reference, run.recipe
    records: list[StepRecord] = []

    def on_step(record: StepRecord) -> None:
        records.append(record)
        progress.advance(1, f"{run.name}, step {record.step + 1} of {run.steps}")

    def on_checkpoint(step: int, model: PreTrainedModel) -> None:
        loaded = LoadedModel(model, reference.tokenizer, run.name)
        cells = to_json(context.ask(loaded, run.questions, run.stage(step)))
        about = {"run": run.name, "step": step, "losses": _losses(records)}
        answers_store(context, run, step).put(step_name(step), cells, **about)

    started = time.perf_counter()
    if reference.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(reference.model.device)
    result = unlearn(
        reference.model,
        reference.tokenizer,
        [topic.build() for topic in recipe.topics],
        recipe.unlearning(),
        recipe.training(),
        on_step=on_step,
        checkpoints=missing,
        on_checkpoint=on_checkpoint,
        cache=context.shared_cache(),
    )
    record = make_record(recipe, reference, result, time.perf_counter() - started)
    if recipe.check_up:
        record["check_up"] = checked_up(reference, context.check_up, result.model)
    if context.scenario.keep_models:
        _write(context, run, result, record)
    return record


def _losses(records: list[StepRecord]) -> list[list[float]]:
    return [[record.forget_loss, record.retain_loss] for record in records]


def must_write(context: ExperimentContext, run: Run) -> bool:
    """Whether a run's checkpoint is to be kept and is not there."""
    return context.scenario.keep_models and not Path(run.recipe.output).is_dir()


def must_record(context: ExperimentContext, run: Run) -> bool:
    """Whether a run's record is not there, as after a kill before it.

    Version 0.1.0 wrote answers without a `schema_version`, and records in sweeps alone.
    """
    scenario = context.scenario
    if records(scenario.folder).get(run.name) is not None:
        return False
    last = answers_store(context, run, run.steps).path(step_name(run.steps))
    is_old = last.is_file() and "schema_version" not in parse_json(last.read_text(encoding="utf-8"))
    return scenario.describe is not None or not is_old


def _write(context: ExperimentContext, run: Run, result: Result, record: Mapping[str, Any]) -> None:
    """The run's checkpoint, as `defuse unlearn` writes it."""
    recipe, folder = run.recipe, Path(run.recipe.output)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before its record
    folder.parent.mkdir(parents=True, exist_ok=True)
    files = find_checkpoint(locate(recipe.model, recipe.revision), resolve_dtype(recipe.dtype))
    write = partial(write_checkpoint, recipe, Source(context.reference, files), result)
    plan = check(recipe)
    plan.folder.write(write, {"read": plan.read, **record})


def _sentence(error: Exception) -> str:
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "device: out of memory; lower batch_size or the topics' lengths"
    return f"{type(error).__name__}: {error}"
