"""`defuse unlearn`: run a recipe and write a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer


def unlearn(
    recipe: Annotated[
        Path,
        typer.Argument(help="A YAML recipe, or the name of a shipped one.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="field=value, such as steps=100 or noise.std=0.1x"),
    ] = None,
) -> None:
    """Unlearn as RECIPE says and write an ordinary Hugging Face checkpoint.

    The same command resumes an interrupted run. Start it with `accelerate launch` to share the work
    between processes.
    """
    from rich.console import Console

    from defuse.models.load import resolve_device
    from defuse.recipes import find_recipe
    from defuse.unlearning.recipe import load_recipe
    from defuse.unlearning.run import check, finished, run
    from defuse.unlearning.train import StepRecord
    from defuse.utils.distributed import join_processes
    from defuse.utils.progress import shown

    settings = load_recipe(find_recipe(recipe), overrides or ())
    processes = join_processes(resolve_device(settings.device))
    console = Console(stderr=True, quiet=not processes.is_first)
    plan = check(settings)
    if finished(plan):
        console.print(f"{settings.output}: this recipe's run is finished; nothing to do")
        return
    with shown(quiet=not processes.is_first) as progress:
        record = run(plan, progress, processes)
    last = StepRecord(**record["steps"][-1])
    console.print(
        f"{settings.output}: {settings.steps} steps in {record['seconds']:.0f} s ({last.losses})"
    )
