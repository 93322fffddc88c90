"""`defuse experiment`: a whole comparison from one YAML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defuse.cli.options import Jobs, Only, Plan, Report, RetryFailed, RunnerName

if TYPE_CHECKING:
    from defuse.experiments.core.attacks import AttackPlan
    from defuse.experiments.core.scenario import Scenario


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
    plan: Plan = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Try the values of `tune` on the tuning questions.")
    ] = False,
    report: Report = False,
    only: Only = None,
    runner: RunnerName = "serial",
    jobs: Jobs = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Compare unlearning methods and defences on your model, texts and questions.

    What is finished is kept in the experiment's output; the same command resumes it. The exit code
    is 1 if a run failed.
    """
    from defuse.experiments.core.attacks import run_attacks
    from defuse.experiments.core.job import Request, choose_methods, run_experiment
    from defuse.utils.progress import shown
    from defuse.utils.runner import Runner
    from defuse.utils.screen import Console

    command = " ".join(["defuse experiment", str(file), *(overrides or ())])
    request = Request(plan, tune, report, retry_failed, Runner(runner, jobs))
    scenario, attacks = _find(file, overrides or (), command, tune=tune)
    scenario = scenario.with_runs(choose_methods(scenario.runs, only or ()))
    with shown() as progress:
        failed = run_experiment(scenario, request, Console(), progress)
        if attacks is not None and not tune:
            run_attacks(attacks, request, Console(), progress)
    if failed:
        raise typer.Exit(1)


def _find(
    name: Path, overrides: Sequence[str], command: str, *, tune: bool
) -> "tuple[Scenario, AttackPlan | None]":
    """The scenario of an experiment by its file or name, and its attacks, if it has any.

    The data of "synthetic" are made by code; all others are files.
    """
    from defuse.experiments.core.experiment_file import load_experiment
    from defuse.experiments.core.experiment_scenario import attack_plan, make_scenario
    from defuse.experiments.synthetic import scenario as synthetic
    from defuse.utils.config import parse, set_fields

    if name.is_file() or name.as_posix() != "synthetic":
        experiment = load_experiment(name, overrides)
        scenario = make_scenario(experiment, command, tune=tune)
        return scenario, attack_plan(experiment, scenario)
    given: dict[str, Any] = {"tune": tune}
    set_fields(given, overrides)
    return synthetic.make_scenario(parse(synthetic.Options, given, "synthetic")), None
