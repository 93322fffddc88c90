"""`defuse experiment`: a whole comparison from one YAML file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Option = typer.Option


def experiment(
    file: Annotated[
        Path,
        typer.Argument(
            help="A YAML file, or the name of a shipped experiment.", show_default=False
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="field=value, such as compare.seeds=[0,1] or unlearn.steps=20"),
    ] = None,
    plan: Annotated[
        bool, Option("--plan", help="List the runs and the time they take; change nothing.")
    ] = False,
    tune: Annotated[
        bool, Option("--tune", help="Try the values of `tune` on the tuning questions.")
    ] = False,
    report: Annotated[bool, Option("--report", help="Only report what is finished.")] = False,
    only: Annotated[list[str] | None, Option(help="Only this method; repeat for more.")] = None,
    runner: Annotated[
        Literal["serial", "processes", "ray"],
        Option(help="In this process, in several processes of one thread, or on Ray."),
    ] = "serial",
    jobs: Annotated[int | None, Option(help="Runs at a time; default: one a core.")] = None,
    retry_failed: Annotated[bool, Option("--retry-failed", help="Run failed runs again.")] = False,
) -> None:
    """Compare unlearning methods and defences on your model, texts and questions.

    What is finished is kept in the experiment's output; the same command resumes it. The exit code
    is 1 if a run failed.
    """
    from rich.console import Console

    from defuse.experiments.core.attacks import run_attacks
    from defuse.experiments.core.job import Request, choose_methods, run_experiment
    from defuse.experiments.core.ray_cluster import Resources
    from defuse.experiments.core.runner import Runner
    from defuse.experiments.experiments import find_experiment
    from defuse.utils.progress import shown

    command = " ".join(["defuse experiment", str(file), *(overrides or ())])
    request = Request(
        plan, tune, report, retry_failed, Runner(runner, jobs, Resources(workers=jobs))
    )
    scenario, attacks = find_experiment(file, overrides or (), command, tune=tune)
    scenario = scenario.with_runs(choose_methods(scenario.runs, only or ()))
    with shown() as progress:
        failed = run_experiment(scenario, request, Console(), progress)
        if attacks is not None and not tune:
            run_attacks(
                attacks,
                Console(),
                jobs=jobs,
                only_plan=plan,
                only_report=report,
                progress=progress,
            )
    if failed:
        raise typer.Exit(1)
