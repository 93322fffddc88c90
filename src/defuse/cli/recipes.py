"""`defuse recipes`: list, show and copy the shipped recipes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defuse.recipes import GATED, shipped_experiments, shipped_recipe, shipped_recipes
from defuse.utils.errors import UsageError
from defuse.utils.files import write_text

if TYPE_CHECKING:
    from defuse.unlearning.recipe import Recipe

HEAD = ("recipe", "retain", "noise", "topics", "gated")
Name = Annotated[str, typer.Argument(help="As listed, such as zephyr-7b-beta/rmu.")]

recipes = typer.Typer(add_completion=False)


@recipes.callback(invoke_without_command=True)
def list_recipes(context: typer.Context) -> None:
    """List the shipped recipes, or show or copy one."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from defuse.unlearning.recipe import load_recipe
    from defuse.utils.screen import Console

    found = [(name, load_recipe(path)) for name, path in shipped_recipes().items()]
    for model in dict.fromkeys(recipe.model for _, recipe in found):
        # Names are not wrapped at 80 columns, so that they can be copied.
        table = Table(*HEAD, title=model, title_justify="left", box=None, padding=(0, 1, 0, 0))
        table.columns[0].no_wrap = True
        for name, recipe in found:
            if recipe.model == model:
                table.add_row(name, *_cells(recipe))
        Console().print(table, "")
    Console().print("experiments, for `defuse experiment`", *shipped_experiments(), sep="\n")


def _cells(recipe: "Recipe") -> tuple[str, ...]:
    """The columns of `HEAD` after the name; the model or a topic's corpora may be gated."""
    gated = ["model"] if recipe.model in GATED else []
    for topic in recipe.topics:
        sources = (topic.forget.source, topic.retain.source)
        if any(source.partition(":")[0] in GATED for source in sources):
            gated.append(topic.name)
    noise = "" if recipe.noise is None else str(recipe.noise.std)
    topics = ", ".join(topic.name for topic in recipe.topics)
    return recipe.retain.loss, noise, topics, ", ".join(gated)


@recipes.command()
def show(name: Name) -> None:
    """Print a recipe."""
    typer.echo(shipped_recipe(name).read_text(encoding="utf-8"), nl=False)


@recipes.command()
def copy(
    name: Name,
    to: Annotated[
        Path | None, typer.Argument(help="File or folder; default: the last part of NAME.")
    ] = None,
) -> None:
    """Copy a recipe to a file that you can change and run."""
    source = shipped_recipe(name)
    path = to or Path()
    path = path / source.name if path.is_dir() else path
    if path.exists():
        raise UsageError(f"to: {path} exists already; name another file")
    write_text(path, source.read_text(encoding="utf-8"))
    typer.echo(f"Written: {path}")
