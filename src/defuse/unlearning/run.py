"""A recipe from file to checkpoint: everything checked first, then trained, then written whole."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defuse.models.decoder import Decoder
from defuse.models.fsdp import check_sharding
from defuse.models.load import (
    LoadedModel,
    load_config,
    load_tokenizer,
    locate,
    resolve_device,
    resolve_dtype,
    skeleton,
)
from defuse.unlearning.checkpoint import SavedState
from defuse.unlearning.config import Topic, Training, Unlearning, validate
from defuse.unlearning.output import RECORD, make_record, open_source, write_output
from defuse.unlearning.recipe import Recipe
from defuse.unlearning.tokenized import encode_topics, texts_digest
from defuse.unlearning.train import Result, StepRecord, merged, unlearn
from defuse.utils.config import parse
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held
from defuse.utils.provenance import fingerprint

STATE, LOCK = "state.safetensors", "lock"
# What says where and how often to write, and how to work, not what the run is.
ASIDE = ("output", "checkpoint_every", "shard", "recompute")


@dataclass(frozen=True)
class Job:
    """A recipe with its texts read, checked against its model's configuration.

    `texts`: a hash of all token ids that the steps reach.
    """

    recipe: Recipe
    unlearning: Unlearning
    topics: tuple[Topic, ...]
    training: Training
    texts: str


def finished(recipe: Recipe) -> bool:
    """Whether `recipe.output` holds this recipe's run.

    Raises UsageError if it holds anything else, or cannot be written.
    """
    folder = Path(recipe.output)
    if folder.is_dir() and any(folder.iterdir()):
        if _recorded(folder) == _essence(recipe):
            return True
        raise UsageError(
            f"output: {folder} holds another run or other files; name a new folder or remove it"
        )
    check_writable(folder, "output")
    return False


def check(recipe: Recipe) -> Job:
    """Everything that can be refused before the model's weights are read. Raises UsageError."""
    source = locate(recipe.model, recipe.revision)
    resolve_device(recipe.device)
    decoder = Decoder(skeleton(load_config(source), resolve_dtype(recipe.dtype)))
    topics = recipe.read_topics()
    unlearning, training = recipe.unlearning(), recipe.training()
    validate(unlearning, topics, training, decoder)
    encoded = encode_topics(decoder, unlearning, load_tokenizer(source), topics, training)
    return Job(recipe, unlearning, topics, training, texts_digest(encoded))


def execute(
    job: Job,
    on_step: Callable[[StepRecord], None] | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Train, write the checkpoint with its `run.json`, and return what stands in there.

    The output folder appears whole at the end. Until then its neighbour `….partial` holds the
    state of the run, from which the same job goes on after an error or a kill. Of several
    `processes` the first writes. Raises UsageError if another process works on the same output.
    """
    recipe = job.recipe
    if recipe.shard:
        check_sharding(processes, recipe.batch_size)
    with _workplace(recipe, processes) as partial:
        if finished(recipe):  # by another process, while this one came here
            return json.loads((Path(recipe.output) / RECORD).read_text(encoding="utf-8"))
        began = time.perf_counter()
        source = open_source(recipe, job.unlearning)
        result = _train(job, source.loaded, partial, on_step, processes)
        result = merged(result) if recipe.merges else result
        record = make_record(recipe, source.loaded, result, time.perf_counter() - began)
        if processes.is_first:
            write_output(recipe, source, result, record, partial)
        processes.wait()
    return record


@contextmanager
def _workplace(recipe: Recipe, processes: Processes) -> Iterator[Path]:
    """The folder beside the output for a run's state; gone when the run has ended well."""
    output = Path(recipe.output).resolve()
    partial = output.with_name(f"{output.name}.partial")
    if not processes.is_first:
        yield partial
        return
    ended_well = False
    try:
        with held(partial / LOCK, "output", recipe.output):
            for path in partial.iterdir():  # what a kill has left half-written
                if path.name not in (STATE, LOCK):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield partial
            ended_well = True
    finally:
        if ended_well or not (partial / STATE).exists():
            shutil.rmtree(partial, ignore_errors=True)


def _train(
    job: Job,
    loaded: LoadedModel,
    partial: Path,
    on_step: Callable[[StepRecord], None] | None,
    processes: Processes,
) -> Result:
    essence = json.dumps(_essence(job.recipe), sort_keys=True)
    parts = (essence, job.texts, fingerprint(loaded.model))
    identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return unlearn(
        loaded.model,
        loaded.tokenizer,
        job.topics,
        job.unlearning,
        job.training,
        in_place=True,
        on_step=on_step,
        saved=SavedState(partial / STATE, job.recipe.checkpoint_every, identity),
        processes=processes,
        shard_on=resolve_device(job.recipe.device) if job.recipe.shard else None,
    )


def _recorded(folder: Path) -> Mapping[str, Any] | None:
    """The essence of the recipe whose run a folder holds, if it holds one."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return _essence(parse(Recipe, record["recipe"], ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _essence(recipe: Recipe) -> Mapping[str, Any]:
    """What makes a recipe the same one, wherever and however often it writes."""
    fields = recipe.model_dump(mode="json")
    return {field: value for field, value in fields.items() if field not in ASIDE}
