"""The model that a run reads, and the checkpoint and record that it writes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from defuse.models.load import LoadedModel, load_model, resolve_dtype
from defuse.models.locate import locate
from defuse.models.partial_load import find_checkpoint, load_part
from defuse.models.safetensors_index import Checkpoint
from defuse.models.save import write_adapter, write_changed, write_model
from defuse.run_folder import RunFolder
from defuse.unlearning.checkpoint import PREVIOUS_STATE, STATE
from defuse.unlearning.config import Unlearning
from defuse.unlearning.recipe import Recipe
from defuse.unlearning.recipe_identity import identity_of
from defuse.unlearning.train import Result
from defuse.utils.config import dump, parse
from defuse.utils.errors import UsageError
from defuse.utils.provenance import run_facts


@dataclass(frozen=True)
class Source:
    """The model to unlearn from; `checkpoint`: its files, if they can be changed one by one."""

    loaded: LoadedModel
    checkpoint: Checkpoint | None


def open_source(recipe: Recipe, unlearning: Unlearning) -> Source:
    """Load the recipe's model, and no more of it than `unlearning` runs.

    Raises UsageError for what cannot be loaded, and with `shard` for files that would have to be
    written in full.
    """
    name, revision, dtype = recipe.model, recipe.revision, recipe.dtype
    checkpoint = find_checkpoint(locate(name, revision), resolve_dtype(dtype))
    if recipe.shard and checkpoint is None:
        raise UsageError(
            f"shard: {name} has to be written in full, but no process then holds all of it; use "
            "safetensors files in the recipe's dtype"
        )
    device = "cpu" if recipe.shard else recipe.device  # each process's share is moved later
    if checkpoint is not None and unlearning.ends_at_layer:
        stop = unlearning.layer + 1
        loaded = load_part(name, stop, device=device, dtype=dtype, revision=revision)
    else:
        loaded = load_model(name, device=device, dtype=dtype, revision=revision)
    return Source(loaded, checkpoint)


def run_folder(recipe: Recipe, read: Mapping[str, str]) -> RunFolder:
    """The folder of a recipe's run; `read`: hashes of the texts and the model's files."""
    return RunFolder(
        path=Path(recipe.output),
        option="output",
        verb="unlearn",
        identity={**identity_of(recipe), **read},
        read_identity=_identity_in,
        checkpoints=(STATE, PREVIOUS_STATE),
    )


def _identity_in(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**identity_of(parse(Recipe, record["recipe"], "")), **record.get("read", {})}


def make_record(
    recipe: Recipe, loaded: LoadedModel, result: Result, seconds: float
) -> dict[str, Any]:
    """The record in `run.json`: all that is needed to trust the run."""
    return {
        "recipe": dump(recipe),
        "model_commit": loaded.commit,
        "changed": sorted(result.changed),
        "steps": [asdict(step) for step in result.records],
        **run_facts(loaded.model, seconds),
    }


def write_checkpoint(recipe: Recipe, source: Source, result: Result, folder: Path) -> None:
    """Write the unlearned model, or its adapter, into an existing folder."""
    if result.adapter is not None:
        base = (recipe.model, recipe.revision)
        write_adapter(result.adapter, base, source.loaded.tokenizer, folder)
    elif source.checkpoint is not None:
        write_changed(source.checkpoint, result.changed, folder)
    else:
        write_model(result.model, source.loaded.tokenizer, folder)
