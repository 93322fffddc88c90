"""The time that runs of a sweep save by sharing one activation cache.

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
from defuse.unlearning.activation_cache import ActivationCache
from defuse.unlearning.recipe import load_recipe
from defuse.unlearning.run import Plan, check
from defuse.unlearning.train import Result, unlearn


def timed(plan: Plan, base: LoadedModel, cache: ActivationCache | None) -> tuple[Result, float]:
    began = time.process_time()
    how = (plan.topics, plan.unlearning, plan.training)
    result = unlearn(base.model, base.tokenizer, *how, cache=cache)
    return result, time.process_time() - began


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value")] = None,
) -> None:
    torch.set_num_threads(1)
    plan = check(load_recipe(find_recipe(recipe), overrides or ()))
    base = load_model(plan.recipe.model, device="cpu", dtype=plan.recipe.dtype)
    cache = ActivationCache()
    alone, by_itself = timed(plan, base, None)
    _, first = timed(plan, base, cache)
    again, later = timed(plan, base, cache)
    for name, tensor in alone.changed.items():
        assert torch.equal(again.changed[name], tensor), name
    Console().print(
        f"by itself {by_itself:.1f} s, first of a sweep {first:.1f} s, later {later:.1f} s "
        f"({1 - later / by_itself:.0%} less); {cache.nbytes / 2**20:.0f} MiB cached"
    )


if __name__ == "__main__":
    typer.run(main)
