"""A recipe from file to checkpoint: everything checked first, then trained, then written whole."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from defuse.decoder import Decoder
from defuse.errors import UsageError
from defuse.files import check_writable, new_folder, write_json
from defuse.models import (
    load_config,
    load_model,
    load_tokenizer,
    locate,
    resolve_device,
    resolve_dtype,
    skeleton,
)
from defuse.partial import find_checkpoint, load_part
from defuse.prepare import encode_topics
from defuse.provenance import peak_memory_bytes, versions
from defuse.recipe import Recipe
from defuse.saving import write_changed, write_model
from defuse.train import StepRecord, unlearn
from defuse.unlearning import Topic, Training, Unlearning, trained_parameters, validate

RECORD = "run.json"


@dataclass(frozen=True)
class Job:
    """A recipe with its texts read, checked against its model's configuration."""

    recipe: Recipe
    unlearning: Unlearning
    topics: tuple[Topic, ...]
    training: Training


def finished(recipe: Recipe) -> bool:
    """Whether `recipe.output` holds this recipe's run.

    Raises UsageError if it holds anything else, or cannot be written.
    """
    folder = Path(recipe.output)
    if folder.is_dir() and any(folder.iterdir()):
        if _recorded(folder) == _essence(recipe.model_dump(mode="json")):
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
    topics = tuple(topic.build() for topic in recipe.topics)
    job = Job(recipe, recipe.unlearning(), topics, recipe.training())
    validate(job.unlearning, job.topics, job.training, decoder)
    trained_parameters(decoder, job.unlearning)
    encode_topics(decoder, job.unlearning, load_tokenizer(source), topics, job.training)
    return job


def execute(job: Job, on_step: Callable[[StepRecord], None] | None = None) -> dict[str, Any]:
    """Train, write the checkpoint with its `run.json`, and return what stands in there.

    The output folder appears whole at the end, or, after an error or a kill, not at all.
    """
    recipe, began = job.recipe, time.perf_counter()
    checkpoint = find_checkpoint(locate(recipe.model, recipe.revision), resolve_dtype(recipe.dtype))
    place = {"device": recipe.device, "dtype": recipe.dtype, "revision": recipe.revision}
    if checkpoint is not None and job.unlearning.ends_at_layer:
        loaded = load_part(recipe.model, job.unlearning.layer + 1, **place)
    else:
        loaded = load_model(recipe.model, **place)
    arguments = (loaded.model, loaded.tokenizer, job.topics, job.unlearning, job.training)
    result = unlearn(*arguments, in_place=True, on_step=on_step)
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "model_commit": getattr(loaded.model.config, "_commit_hash", None),
        "changed": sorted(result.changed),
        "steps": [asdict(step) for step in result.records],
        "seconds": time.perf_counter() - began,
        "peak_memory_bytes": peak_memory_bytes(loaded.model.device),
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    try:
        with new_folder(Path(recipe.output)) as folder:
            if checkpoint is None:
                write_model(result.model, loaded.tokenizer, folder)
            else:
                write_changed(checkpoint, result.changed, folder)
            write_json(folder / RECORD, record)
    except OSError as error:
        raise UsageError(f"output: {recipe.output} cannot be written ({error})") from error
    return record


def _recorded(folder: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return _essence(record["recipe"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _essence(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """What makes a recipe the same one, wherever its output is put."""
    return {field: value for field, value in recipe.items() if field != "output"}
