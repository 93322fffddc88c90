"""`defuse unlearn`: check a recipe, then run it and write a checkpoint."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from defuse.evaluate.check_up import CheckUp, as_record, check_up
from defuse.models.decoder import Decoder
from defuse.models.file_identity import file_identity
from defuse.models.fsdp import check_sharding
from defuse.models.load import (
    LoadedModel,
    load_outline,
    resolve_device,
    resolve_dtype,
)
from defuse.models.locate import locate
from defuse.models.partial_load import find_checkpoint, present
from defuse.run_folder import RunFolder
from defuse.store import as_json
from defuse.unlearning.cautions import about_settings
from defuse.unlearning.checkpoint import SavedState
from defuse.unlearning.config import Topic, Training, Unlearning, validate
from defuse.unlearning.forecast import Forecast, check_space, make_forecast
from defuse.unlearning.output import (
    Source,
    make_record,
    open_source,
    run_folder,
    write_checkpoint,
)
from defuse.unlearning.recipe import Recipe
from defuse.unlearning.tokenized import encode_topics, texts_digest
from defuse.unlearning.train import Result, StepRecord, unlearn
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.files import check_name
from defuse.utils.progress import SILENT, Progress

OnStep = Callable[[StepRecord], None]


@dataclass(frozen=True)
class Plan:
    """A recipe whose texts are read and which is checked against its model's configuration.

    `read`: hashes of what the run reads: all token ids that the steps reach, and the model's files.
    `cautions`: sentences about settings that will hardly work.
    """

    recipe: Recipe
    unlearning: Unlearning
    topics: tuple[Topic, ...]
    training: Training
    read: Mapping[str, str]
    forecast: Forecast
    cautions: tuple[str, ...] = ()

    @property
    def folder(self) -> RunFolder:
        return run_folder(self.recipe, self.read)


def finished(plan: Plan) -> bool:
    """Whether the recipe's output holds this plan's run.

    Raises UsageError if it holds anything else or is damaged, or cannot be written.
    """
    return plan.folder.is_finished()


def check(recipe: Recipe) -> Plan:
    """Check all that can be checked before the model's weights are read. Raises UsageError."""
    output = Path(recipe.output)
    check_name(output, "output")
    source = locate(recipe.model, recipe.revision)
    resolve_device(recipe.device)
    outline = load_outline(recipe.model, recipe.dtype, recipe.revision)
    decoder = Decoder(outline.model)
    topics = recipe.read_topics()
    unlearning, training = recipe.unlearning(), recipe.training()
    validate(unlearning, topics, decoder)
    encoded = encode_topics(decoder, unlearning, outline.tokenizer, topics, training)
    read = {"texts": texts_digest(encoded), **file_identity(source)}
    is_local = Path(source.path).is_dir()  # a hub model's files are not downloaded for a plan
    forecast = make_forecast(
        decoder,
        unlearning,
        training,
        encoded,
        find_checkpoint(source, resolve_dtype(recipe.dtype)) if is_local else None,
        saves_states=recipe.checkpoint_every > 0,
    )
    if not output.exists():
        check_space(forecast, output)
    cautions = (*about_settings(decoder, training, encoded),)
    return Plan(recipe, unlearning, topics, training, read, forecast, cautions)


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
    folder = plan.folder
    with folder.work(processes) as unfinished:
        if folder.is_finished():  # by another process since the check
            return folder.record()
        began = time.perf_counter()
        progress.start(f"loading {recipe.model}", 1)
        source = open_source(recipe, plan.unlearning)
        wanted = recipe.check_up and processes.is_first and not recipe.shard
        before = _check_up(source, source.loaded.model, progress) if wanted else None
        result = _train(plan, source.loaded, unfinished, progress, processes, on_step)
        seconds = time.perf_counter() - began
        record = {"read": plan.read, **make_record(recipe, source.loaded, result, seconds)}
        if before is not None:
            after = _check_up(source, result.model, progress, before)
            record["check_up"] = as_record(before, after)
        if processes.is_first:
            progress.start(f"writing {recipe.output}", 1)
            folder.write(partial(write_checkpoint, recipe, source, result), record, unfinished)
            progress.advance()
        processes.wait()
    return record


def _check_up(
    source: Source, model: PreTrainedModel, progress: Progress, before: CheckUp | None = None
) -> CheckUp:
    """A model loaded in part is read block by block, and writes nothing: that takes all blocks."""
    progress.start("check-up", 1)
    is_whole = not any(parameter.is_meta for parameter in model.parameters())
    found = check_up(
        replace(source.loaded, model=model),
        before,
        write=is_whole,
        present=partial(present, model, source.checkpoint),
    )
    progress.advance()
    return found


def _train(
    plan: Plan,
    loaded: LoadedModel,
    unfinished: Path,
    progress: Progress,
    processes: Processes,
    on_step: OnStep | None,
) -> Result:
    identity = json.dumps(as_json(plan.folder.identity), sort_keys=True)
    return unlearn(
        loaded.model,
        loaded.tokenizer,
        plan.topics,
        plan.unlearning,
        plan.training,
        in_place=True,
        on_step=on_step,
        saved=SavedState(unfinished, plan.recipe.checkpoint_every, identity),
        processes=processes,
        shard_on=resolve_device(plan.recipe.device) if plan.recipe.shard else None,
        progress=progress,
    )
