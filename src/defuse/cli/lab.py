"""`defuse lab`: the controlled experiment on an invented world."""

from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="Of the invented world and its models.")]
Forget = Annotated[str, typer.Option(help="Domain to forget.")]
Output = Annotated[Path, typer.Option(help="Folder for models, answers, table and figure.")]

lab = typer.Typer(help="The controlled experiment on an invented world.")


@lab.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    full: Annotated[
        bool, typer.Option("--full", help="All methods, retain losses and noises; ten seeds.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Try settings on questions that no report uses.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would run, and for how long.")
    ] = False,
    seed: Seed = 0,
    forget: Forget = "pathogens",
    output: Output = Path("runs/lab"),
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; default one a core.")] = None,
) -> None:
    """Unlearn one domain of an invented world, and measure it against the gold standard.

    Stops and starts as you like: what is finished is kept in OUTPUT.
    """
    if context.invoked_subcommand is not None:
        return
    from defuse.lab.job import Order, carry_out

    carry_out(Order(full, tune, plan, seed, forget, output, jobs))


@lab.command()
def train(
    seed: Seed = 0, forget: Forget = "pathogens", output: Output = Path("runs/lab/models")
) -> None:
    """Teach the tiny base model and its gold standard, which never saw the forget domain."""
    from rich.console import Console

    from defuse.errors import UsageError
    from defuse.lab.job import teach
    from defuse.lab.models import missing
    from defuse.lab.world import build_world

    world = build_world(seed)
    world.of(forget)
    folder = output / f"{forget}-seed{seed}"
    if not missing(folder):
        raise UsageError(f"output: {folder} holds both models already; name another folder")
    teach(world, forget, folder, Console())
