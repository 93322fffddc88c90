"""`defuse unlearn`: a recipe in, a checkpoint out."""

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
    """Unlearn what RECIPE says and write an ordinary Hugging Face checkpoint.

    A run that was interrupted goes on where it was when the same command is given again. Start it
    with `accelerate launch` to share the work between processes.
    """
    from rich.console import Console

    from defuse.cli.progress import steps_shown
    from defuse.models.load import resolve_device
    from defuse.recipes import find_recipe
    from defuse.unlearning.recipe import load_recipe
    from defuse.unlearning.run import check, execute, finished
    from defuse.utils.distributed import join_processes

    settings = load_recipe(find_recipe(recipe), overrides or ())
    processes = join_processes(resolve_device(settings.device))
    console = Console(stderr=True, quiet=not processes.is_first)
    if finished(settings):
        console.print(f"{settings.output}: this recipe's run is finished; nothing to do")
        return
    job = check(settings)
    with steps_shown(settings.steps, console) as on_step:
        record = execute(job, on_step, processes)
    console.print(f"{settings.output}: {settings.steps} steps in {record['seconds']:.0f} s")
