"""`defuse unlearn`: check a recipe, then run it and write a checkpoint."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from defuse.unlearning.output import (
    STATE,
    identity_text,
    make_record,
    open_source,
    run_folder,
    write_checkpoint,
)
from defuse.unlearning.recipe import Recipe
from defuse.unlearning.tokenized import encode_topics, texts_digest
from defuse.unlearning.train import Result, StepRecord, unlearn
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import fingerprint

OnStep = Callable[[StepRecord], None]


@dataclass(frozen=True)
class Plan:
    """A recipe whose texts are read and which is checked against its model's configuration.

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
    return run_folder(recipe).is_finished()


def check(recipe: Recipe) -> Plan:
    """Check all that can be checked before the model's weights are read. Raises UsageError."""
    source = locate(recipe.model, recipe.revision)
    resolve_device(recipe.device)
    decoder = Decoder(skeleton(load_config(source), resolve_dtype(recipe.dtype)))
    topics = recipe.read_topics()
    unlearning, training = recipe.unlearning(), recipe.training()
    validate(unlearning, topics, decoder)
    encoded = encode_topics(decoder, unlearning, load_tokenizer(source), topics, training)
    return Plan(recipe, unlearning, topics, training, texts_digest(encoded))


def run(
    plan: Plan,
    progress: Progress = SILENT,
    processes: Processes = ALONE,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Train, write the checkpoint with its `run.json`, and return the record.

    The output folder appears whole at the end. Until then its neighbour `….partial` holds the
    state, from which the same plan resumes after an error or a kill. `on_step` receives the record
    of every step. Of several `processes` the first one writes. Raises UsageError if another process
    works on the same output.
    """
    recipe = plan.recipe
    if recipe.shard:
        check_sharding(processes, recipe.batch_size)
    folder = run_folder(recipe)
    with folder.work(processes) as unfinished:
        if folder.is_finished():  # by another process since the check
            return folder.record()
        began = time.perf_counter()
        progress.start(f"loading {recipe.model}", 1)
        source = open_source(recipe, plan.unlearning)
        result = _train(plan, source.loaded, unfinished, progress, processes, on_step)
        record = make_record(recipe, source.loaded, result, time.perf_counter() - began)
        if processes.is_first:
            progress.start(f"writing {recipe.output}", 1)
            folder.write(partial(write_checkpoint, recipe, source, result), record, unfinished)
            progress.advance()
        processes.wait()
    return record


def _train(
    plan: Plan,
    loaded: LoadedModel,
    unfinished: Path,
    progress: Progress,
    processes: Processes,
    on_step: OnStep | None,
) -> Result:
    parts = (identity_text(plan.recipe), plan.texts, fingerprint(loaded.model))
    identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return unlearn(
        loaded.model,
        loaded.tokenizer,
        plan.topics,
        plan.unlearning,
        plan.training,
        in_place=True,
        on_step=on_step,
        saved=SavedState(unfinished / STATE, plan.recipe.checkpoint_every, identity),
        processes=processes,
        shard_on=resolve_device(plan.recipe.device) if plan.recipe.shard else None,
        progress=progress,
    )
