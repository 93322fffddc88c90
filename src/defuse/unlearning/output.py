"""What a run reads and leaves: the model, and the folder with a checkpoint and `run.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from defuse.models.load import LoadedModel, load_model, locate, resolve_dtype
from defuse.models.partial_load import find_checkpoint, load_part
from defuse.models.safetensors_index import Checkpoint
from defuse.models.save import write_adapter, write_changed, write_model
from defuse.unlearning.config import Unlearning
from defuse.unlearning.recipe import Recipe
from defuse.unlearning.train import Result
from defuse.utils.errors import UsageError
from defuse.utils.files import new_folder, write_json
from defuse.utils.provenance import peak_memory_bytes, versions

RECORD = "run.json"


@dataclass(frozen=True)
class Source:
    """The model to unlearn from; `checkpoint`: its files, if they can be changed one by one."""

    loaded: LoadedModel
    checkpoint: Checkpoint | None


def open_source(recipe: Recipe, unlearning: Unlearning) -> Source:
    """The recipe's model, of which no more is loaded than `unlearning` runs.

    Raises UsageError for what cannot be loaded, and with `shard` for files that would have to be
    written whole.
    """
    name, revision, dtype = recipe.model, recipe.revision, recipe.dtype
    checkpoint = find_checkpoint(locate(name, revision), resolve_dtype(dtype))
    if recipe.shard and checkpoint is None:
        raise UsageError(
            f"shard: {name} has to be written whole, which no process holds then; use safetensors "
            "files in the recipe's dtype"
        )
    device = "cpu" if recipe.shard else recipe.device  # a share goes to the device later
    if checkpoint is not None and unlearning.ends_at_layer:
        stop = unlearning.layer + 1
        loaded = load_part(name, stop, device=device, dtype=dtype, revision=revision)
    else:
        loaded = load_model(name, device=device, dtype=dtype, revision=revision)
    return Source(loaded, checkpoint)


def make_record(
    recipe: Recipe, loaded: LoadedModel, result: Result, seconds: float
) -> dict[str, Any]:
    """What `run.json` says: all that is needed to trust the run."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "model_commit": loaded.commit,
        "changed": sorted(result.changed),
        "steps": [asdict(step) for step in result.records],
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(loaded.model.device),
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def write_output(
    recipe: Recipe, source: Source, result: Result, record: Mapping[str, Any], partial: Path
) -> None:
    """Write `recipe.output`, which appears whole; `partial`: a folder beside it to fill it in.

    Raises UsageError if it cannot be written.
    """
    try:
        with new_folder(Path(recipe.output), within=partial) as folder:
            if result.adapter is not None:
                base = (recipe.model, recipe.revision)
                write_adapter(result.adapter, base, source.loaded.tokenizer, folder)
            elif source.checkpoint is not None:
                write_changed(source.checkpoint, result.changed, folder)
            else:
                write_model(result.model, source.loaded.tokenizer, folder)
            write_json(folder / RECORD, record)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"output: {recipe.output} cannot be written ({error}); make room and run the same "
            "command again"
        ) from error
