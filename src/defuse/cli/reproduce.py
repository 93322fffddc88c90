"""`defuse reproduce`: the rows of the RNA paper next to those of a model."""

from pathlib import Path
from typing import Annotated

import typer

Option = typer.Option


def reproduce(
    model: Annotated[str, Option(help="Hub id, checkpoint or adapter folder, .gguf file.")],
    out: Annotated[Path, Option(help="Folder for table and results.")] = Path("runs/reproduce"),
    reference: Annotated[
        str | None, Option(help="The model before unlearning, measured as well.")
    ] = None,
    data: Annotated[
        str | None, Option(help="Folder with mmlu/ and wmdp/; default: the hub's datasets.")
    ] = None,
    limit: Annotated[int | None, Option(help="Only the first N questions of each subject.")] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
    seed: Annotated[int, Option(help="Seed of places, suffixes and bootstraps.")] = 42,
    perturbed: Annotated[
        str | None,
        Option(help="The authors' perturbed questions, such as Huu-Tien/mmlu-sars-cov-2."),
    ] = None,
    gcg: Annotated[int, Option(help="Attack N questions of MMLU, each alone.")] = 0,
    gcg_steps: Annotated[int, Option(help="Steps of each attack, at most.")] = 500,
    gcg_width: Annotated[int, Option(help="Suffixes tried in each step.")] = 512,
    base: Annotated[str | None, Option("--base", hidden=True)] = None,  # its name in 0.1.0
) -> None:
    """Measure the rows of the RNA paper's summary on a model, and print them next to the paper's.

    A row whose questions are missing says what it needs. Measured rows are kept in OUT.
    """
    from defuse.experiments.reproduce.request import Effort, Request
    from defuse.experiments.reproduce.run import check, run
    from defuse.experiments.reproduce.table import table
    from defuse.models.load import resolve_device
    from defuse.report import TableData
    from defuse.report.format import screen_table
    from defuse.utils.distributed import join_processes
    from defuse.utils.progress import shown
    from defuse.utils.screen import Console

    effort = Effort(gcg, gcg_steps, gcg_width)
    request = Request(
        model, out, reference or base, data, limit, device, dtype, seed, effort, perturbed
    )
    plan = check(request)
    processes = join_processes(resolve_device(device))
    with shown(quiet=not processes.is_first) as progress:
        found = run(plan, progress, processes)
    if processes.is_first:
        console, rows = Console(), table(found, perturbed)
        figures = [row[:-1] for row in rows.rows]
        console.print(screen_table(TableData(rows.caption, rows.head[:-1], figures)))
        for row in rows.rows:
            if row[-1]:
                console.print(f"{row[0]}: {row[-1]}", highlight=False, markup=False)
        console.print(f"Written: {out}", markup=False)
