"""What lives in each of Ray's processes: one base model, from which run after run starts."""

import os
import shutil
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from defuse.experiments.core.answers import Answers
from defuse.experiments.sweep.exam import Exam
from defuse.models.load import LoadedModel, load_model, locate, resolve_dtype
from defuse.models.partial_load import find_checkpoint
from defuse.unlearning.activation_cache import ActivationCache
from defuse.unlearning.config import Training
from defuse.unlearning.output import Source, make_record, run_folder, write_checkpoint
from defuse.unlearning.recipe import Recipe
from defuse.unlearning.run import check
from defuse.unlearning.train import Result, StepRecord, unlearn
from defuse.utils.config import parse
from defuse.utils.errors import UsageError
from defuse.utils.provenance import fingerprint, versions

# Times the cache of one run: beyond that, the results of earlier runs are dropped.
LARGEST_CACHE = 1.5


@dataclass(frozen=True)
class Base:
    """The model that every run starts from, as a recipe names it, seen from the folder `place`."""

    model: str
    revision: str | None
    device: str
    dtype: str
    place: str


@dataclass(frozen=True)
class Task:
    """One run. `identity`: the base model's, which must be the one here; `keep`: a checkpoint."""

    recipe: Mapping[str, Any]
    identity: str
    keep: bool = False


class Worker:
    """Nothing heavy happens before the first call, so that whatever fails then can be told."""

    def __init__(self, base: Base, exam: Exam, threads: int) -> None:
        torch.set_num_threads(threads)
        self.source = base
        self.exam = exam
        self._cache = ActivationCache()

    @cached_property
    def base(self) -> LoadedModel:
        """The base model, loaded once; paths mean what they mean where the sweep was started."""
        source = self.source
        try:
            os.chdir(source.place)
        except OSError as error:
            raise UsageError(
                f"address: {socket.gethostname()} has no folder {source.place}; start the sweep "
                "from a folder that all the cluster's machines share"
            ) from error
        how = {"device": source.device, "dtype": source.dtype, "revision": source.revision}
        return load_model(source.model, **how)

    @cached_property
    def identity(self) -> str:
        """Tells base models, and the precisions they are held in, apart."""
        return f"{fingerprint(self.base.model)} {self.base.model.dtype}"

    def ready(self) -> None:
        """Answers as soon as the process has a place to run in."""

    def identify(self) -> str:
        """The base model's identity."""
        return self.identity

    def ask_base(self) -> Answers:
        """The base model's answers."""
        return self.exam.answers(self.base)

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearn and ask. What goes wrong is told in the record, so that other runs go on."""
        began = time.perf_counter()
        try:
            found = self._found(task)
        except Exception as error:
            found = {
                "error": _sentence(error),
                "traceback": traceback.format_exc(),
                "versions": versions(),
            }
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # a run that filled the memory must not take others with it
        return {**found, "seconds": time.perf_counter() - began, "host": socket.gethostname()}

    def _found(self, task: Task) -> dict[str, Any]:
        if self.identity != task.identity:
            raise UsageError(
                f"model: {self.source.model} on {socket.gethostname()} is not the one that the "
                "sweep began with; give all machines the same files"
            )
        base, began = self.base, time.perf_counter()
        if base.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(base.model.device)
        job = check(parse(Recipe, task.recipe, ""))
        how = (job.topics, job.unlearning, job.training)
        result = unlearn(base.model, base.tokenizer, *how, cache=self._shared_cache())
        record = make_record(job.recipe, base, result, time.perf_counter() - began)
        answers = self.exam.answers(replace(base, model=result.model))
        if task.keep:
            self._write(job.recipe, result, record)
        return {**record, **_last(result.records), "answers": answers}

    def _write(self, recipe: Recipe, result: Result, record: Mapping[str, Any]) -> None:
        folder = Path(recipe.output)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before its record
        folder.parent.mkdir(parents=True, exist_ok=True)
        files = find_checkpoint(locate(recipe.model, recipe.revision), resolve_dtype(recipe.dtype))
        write = partial(write_checkpoint, recipe, Source(self.base, files), result)
        run_folder(recipe).write(write, record)

    def _shared_cache(self) -> ActivationCache:
        """The frozen blocks' results for the texts of earlier runs, unless they take too much."""
        if self._cache.nbytes > LARGEST_CACHE * Training.keep_gib * 2**30:
            self._cache.clear()
        return self._cache


def _last(records: Sequence[StepRecord]) -> dict[str, float]:
    """The losses at the end: of each topic's last step, averaged over topics."""
    last = {record.topic: record for record in records}.values()
    return {
        "forget_loss": fmean(record.forget_loss for record in last),
        "retain_loss": fmean(record.retain_loss for record in last),
    }


def _sentence(error: Exception) -> str:
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "device: out of memory; lower batch_size or the topics' lengths"
    return f"{type(error).__name__}: {error}"
