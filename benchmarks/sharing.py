"""What the runs of a sweep save by sharing what the frozen blocks made of their texts.

    python -m benchmarks.sharing smollm2/rmu-hidden_mse model=FOLDER

Takes any recipe and overrides. Equal weights are asserted before any time is printed. Times are
processor times of one thread, which other work does not touch.
"""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from defuse.models.load import LoadedModel, load_model
from defuse.recipes import find_recipe
from defuse.unlearning.activation_cache import Kept
from defuse.unlearning.recipe import load_recipe
from defuse.unlearning.run import Job, check
from defuse.unlearning.train import Result, unlearn


def timed(job: Job, base: LoadedModel, kept: Kept | None) -> tuple[Result, float]:
    began = time.process_time()
    how = (job.topics, job.unlearning, job.training)
    result = unlearn(base.model, base.tokenizer, *how, kept=kept)
    return result, time.process_time() - began


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value")] = None,
) -> None:
    torch.set_num_threads(1)
    job = check(load_recipe(find_recipe(recipe), overrides or ()))
    base = load_model(job.recipe.model, device="cpu", dtype=job.recipe.dtype)
    kept: Kept = {}
    alone, by_itself = timed(job, base, None)
    _, first = timed(job, base, kept)
    again, later = timed(job, base, kept)
    for name, tensor in alone.changed.items():
        assert torch.equal(again.changed[name], tensor), name
    size = sum(tensor.nbytes for rows in kept.values() for tensor in rows)
    Console().print(
        f"by itself {by_itself:.1f} s, first of a sweep {first:.1f} s, later {later:.1f} s "
        f"({1 - later / by_itself:.0%} less); {size / 2**20:.0f} MiB kept"
    )


if __name__ == "__main__":
    typer.run(main)
