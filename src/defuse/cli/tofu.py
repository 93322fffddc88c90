"""`defuse tofu`: teach invented authors, unlearn some, and compare with who never knew them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from defuse.experiments.tofu.job import Suite


def tofu(
    recipe: Annotated[
        Path, typer.Argument(help="A YAML recipe; smollm2 ships.", show_default=False)
    ],
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

    from defuse.experiments.tofu.job import carry_out
    from defuse.experiments.tofu.recipe import load_whole_way

    settings = load_whole_way(recipe, overrides or ())
    with Progress(console=Console(stderr=True)) as progress:

        def on_stage(name: str, total: int):  # noqa: ANN202 (a small closure)
            task = progress.add_task(name, total=total)
            return lambda done: progress.update(task, completed=done)

        carry_out(settings, on_stage, Console())


def ask_tofu(
    models: Sequence[str],
    out: Path,
    suite: "Suite",
    gold: str | None,
    useless: Mapping[str, object],
    place: tuple[str, str],
) -> None:
    """`defuse evaluate --suite tofu`. `place`: device, dtype; `useless`: other suites' options."""
    from rich.console import Console
    from rich.progress import Progress

    from defuse.experiments.tofu.job import run_suite
    from defuse.experiments.tofu.table import figures_table
    from defuse.utils.errors import UsageError

    for name, value in useless.items():
        if value is not None:
            raise UsageError(f"{name}: {value} does not go with --suite tofu; leave it out")
    device, dtype = place
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("questions", total=None)
        found = dict(
            run_suite(
                models,
                out,
                suite,
                gold=gold,
                device=device,
                dtype=dtype,
                on_asked=lambda _, count: progress.advance(task, count),
            )
        )
    Console().print(figures_table(found))
    Console().print(f"written: {out}", highlight=False)
