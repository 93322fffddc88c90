"""`defuse tofu`: teach invented authors, unlearn some, and compare with a retrained model."""

from pathlib import Path
from typing import Annotated

import typer


def tofu(
    recipe: Annotated[
        Path, typer.Argument(help="A YAML recipe, or the shipped smollm2.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="field=value, such as seeds=[1,2] or unlearn.steps=20"),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only list the models, and which are finished.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Only report what is finished.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run what failed again.")
    ] = False,
) -> None:
    """Teach TOFU's authors, unlearn some, and compare with a model taught the others alone.

    Finished work is kept in the recipe's output; after an interruption the same command resumes.
    """
    from rich.console import Console

    from defuse.experiments.tofu.job import Request, run_tofu
    from defuse.experiments.tofu.recipe import load_recipe
    from defuse.utils.progress import shown

    request = Request(load_recipe(recipe, overrides or ()), plan, report, retry_failed)
    with shown() as progress:
        failed = run_tofu(request, Console(), progress)
    if failed:
        raise typer.Exit(1)
