"""What lives in each of Ray's processes: one base model, from which run after run starts."""

import os
import shutil
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from defuse.errors import UsageError
from defuse.experiment.answers import Answers
from defuse.fields import parse
from defuse.files import new_folder, write_json
from defuse.models import LoadedModel, load_model, write_model
from defuse.provenance import fingerprint, peak_memory_bytes, versions
from defuse.recipe import Recipe
from defuse.run import RECORD
from defuse.store import Kept
from defuse.sweep.exam import Exam
from defuse.train import Result, StepRecord, unlearn
from defuse.unlearning import Training

# Of what one run may keep of the frozen blocks' results: beyond that, other runs' are let go.
MOST_KEPT = 1.5


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
    """One run. `identity`: the base model's, which must be the one here; `keep`: its folder."""

    recipe: Mapping[str, Any]
    identity: str
    keep: str | None = None


class Worker:
    """Nothing heavy happens before the first call, so that whatever fails then can be told."""

    def __init__(self, base: Base, exam: Exam, threads: int) -> None:
        torch.set_num_threads(threads)
        self.source = base
        self.exam = exam
        self._kept: Kept = {}

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
            found = {"error": _sentence(error), "traceback": traceback.format_exc()}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # a run that filled the memory must not take others with it
        seconds = time.perf_counter() - began
        return {**found, "seconds": seconds, "host": socket.gethostname(), "versions": versions()}

    def _found(self, task: Task) -> dict[str, Any]:
        if self.identity != task.identity:
            raise UsageError(
                f"model: {self.source.model} on {socket.gethostname()} is not the one that the "
                "sweep began with; give all machines the same files"
            )
        model = self.base.model
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        recipe = parse(Recipe, task.recipe, "")
        result = self._unlearn(recipe)
        record = {
            "model_commit": getattr(model.config, "_commit_hash", None),
            "changed": sorted(result.changed),
            "steps": [asdict(step) for step in result.records],
            "peak_memory_bytes": peak_memory_bytes(model.device),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        }
        if task.keep is not None:
            self._keep(
                result, Path(task.keep), {**record, "recipe": recipe.model_dump(mode="json")}
            )
        unlearned = LoadedModel(result.model, self.base.tokenizer, recipe.model)
        return {**record, **_last(result.records), "answers": self.exam.answers(unlearned)}

    def _unlearn(self, recipe: Recipe) -> Result:
        return unlearn(
            self.base.model,
            self.base.tokenizer,
            [topic.build() for topic in recipe.topics],
            recipe.unlearning(),
            recipe.training(),
            kept=self._shared(),
        )

    def _shared(self) -> Kept:
        """What the frozen blocks made of texts in earlier runs, as long as that is not too much."""
        size = sum(tensor.nbytes for rows in self._kept.values() for tensor in rows)
        if size > MOST_KEPT * Training.keep_gib * 2**30:
            self._kept.clear()
        return self._kept

    def _keep(self, result: Result, folder: Path, record: Mapping[str, Any]) -> None:
        """The checkpoint, as `defuse unlearn` leaves it."""
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before its record
        with new_folder(folder) as temporary:
            write_model(result.model, self.base.tokenizer, temporary)
            write_json(temporary / RECORD, record)


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
