"""`defuse tofu`: teach invented authors, unlearn some, and compare with a retrained model."""

from pathlib import Path
from typing import Annotated

import typer

from defuse.cli.options import Report, RetryFailed


def tofu(
    recipe: Annotated[
        Path, typer.Argument(help="A YAML recipe, or the shipped smollm2.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="field=value, such as seeds=[1,2] or unlearn.steps=20"),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only list the models, and what is missing.")
    ] = False,
    report: Report = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Teach TOFU's authors, unlearn some, and compare with a model taught the others alone.

    Finished work is kept in the recipe's output; after an interruption the same command resumes.
    """
    from defuse.experiments.core.job import Request
    from defuse.experiments.tofu.job import run_tofu
    from defuse.experiments.tofu.recipe import load_recipe
    from defuse.utils.progress import shown
    from defuse.utils.screen import Console

    settings = load_recipe(recipe, overrides or ())
    request = Request(plan=plan, report=report, retry_failed=retry_failed)
    with shown() as progress:
        failed = run_tofu(settings, request, Console(), progress)
    if failed:
        raise typer.Exit(1)
