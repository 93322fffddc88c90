"""`defuse reproduce`: the paper's rows beside what a model does."""

from pathlib import Path
from typing import Annotated

import typer

Option = typer.Option


def reproduce(
    model: Annotated[str, Option(help="Hub id, checkpoint or adapter folder, .gguf file.")],
    out: Annotated[Path, Option(help="Folder for table and results.")] = Path("runs/reproduce"),
    base: Annotated[str | None, Option(help="The model before unlearning, beside it.")] = None,
    data: Annotated[
        str | None, Option(help="Folder with mmlu/ and wmdp/; default: the hub's datasets.")
    ] = None,
    limit: Annotated[int | None, Option(help="Only the first N questions of each subject.")] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
    seed: Annotated[int, Option(help="Draws places, suffixes and bootstraps.")] = 42,
    gcg: Annotated[int, Option(help="Attack N of MMLU's questions, each alone.")] = 0,
    gcg_steps: Annotated[int, Option(help="Of each attack, at most.")] = 500,
    gcg_width: Annotated[int, Option(help="Suffixes tried in each step.")] = 512,
) -> None:
    """Measure the rows of the paper's summary on a model, and print them beside the paper's.

    Rows whose questions are not there say what they need; what is measured is kept in OUT.
    """
    from rich.console import Console
    from rich.table import Table

    from defuse.cli.progress import answers_shown
    from defuse.experiments.reproduce.paper import CAPTION
    from defuse.experiments.reproduce.reproduce import HEAD, Order, check_order, table
    from defuse.experiments.reproduce.reproduce import reproduce as measure
    from defuse.experiments.reproduce.under_gcg import Effort
    from defuse.models.load import resolve_device
    from defuse.utils.distributed import join_processes

    effort = Effort(gcg, gcg_steps, gcg_width)
    order = Order(model, out, base, data, limit, device, dtype, seed, effort)
    check_order(order)
    processes = join_processes(resolve_device(device))
    with answers_shown(processes) as on_model:
        found = measure(order, on_model, processes)
    if processes.is_first:
        console, shown = Console(), Table(*HEAD[:-1], title=CAPTION)
        rows = table(found)
        for row in rows:
            shown.add_row(*row[:-1])
        console.print(shown)
        for row in rows:
            if row[-1]:
                console.print(f"{row[0]}: {row[-1]}", markup=False)
        console.print(f"written: {out}")
