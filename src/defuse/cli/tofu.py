"""`defuse tofu`: teach invented authors, unlearn some, and compare with who never knew them."""

from pathlib import Path
from typing import Annotated

import typer


def tofu(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="field=value, such as seeds=[1,2] or unlearn.steps=20"),
    ] = None,
) -> None:
    """Teach all of TOFU, unlearn a part, and compare with the model taught the rest alone.

    Stops and starts as you like: what is finished is kept in the recipe's output.
    """
    from rich.console import Console
    from rich.progress import Progress

    from defuse.tofu.job import carry_out
    from defuse.tofu.recipe import load_whole_way

    settings = load_whole_way(recipe, overrides or ())
    with Progress(console=Console(stderr=True)) as progress:

        def on_stage(name: str, total: int):  # noqa: ANN202 (a small closure)
            task = progress.add_task(name, total=total)
            return lambda done: progress.update(task, completed=done)

        carry_out(settings, on_stage, Console())
