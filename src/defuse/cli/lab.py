"""`defuse lab`: the controlled experiment on an invented world."""

from pathlib import Path
from typing import Annotated

import typer

from defuse.cli.options import Attacks, Jobs, Only, Plan, Report, RetryFailed, RunnerName, Tune

Seed = Annotated[int, typer.Option(help="Of the invented world and its models.")]
Size = Annotated[int, typer.Option(help="Subjects a domain.")]
Domains = Annotated[
    list[str] | None,
    typer.Option("--domain", help="People, countries, animals, pathogens: repeat; default all."),
]
Forget = Annotated[str, typer.Option(help="Domain to forget.")]

lab = typer.Typer(help="The controlled experiment on an invented world.")


@lab.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    full: Annotated[
        bool, typer.Option("--full", help="All methods, retain losses and noises; ten seeds.")
    ] = False,
    tune: Tune = False,
    attacks: Attacks = False,
    plan: Plan = False,
    report: Report = False,
    only: Only = None,
    seed: Seed = 0,
    size: Size = 36,
    domain: Domains = None,
    forget: Forget = "pathogens",
    output: Annotated[
        Path, typer.Option(help="Folder for models, answers, table and figure.")
    ] = Path("runs/lab"),
    jobs: Jobs = None,
    runner: RunnerName = "processes",
    retry_failed: RetryFailed = False,
) -> None:
    """Unlearn one domain of an invented world, and measure it against the retrained model.

    Stops and starts as you like: what is finished is kept in OUTPUT.
    """
    if context.invoked_subcommand is not None:
        return
    from defuse.experiments.core.attacks import run_attacks
    from defuse.experiments.core.job import Request, run_experiment
    from defuse.experiments.synthetic.scenario import (
        Options,
        attack_plan,
        make_scenario,
        train_models,
    )
    from defuse.utils.progress import shown
    from defuse.utils.runner import Runner
    from defuse.utils.screen import Console

    chosen, domains = tuple(only or ()), tuple(domain or ())
    options = Options(full, tune, chosen, seed, size, domains, forget, output)
    request = Request(plan, tune, report, retry_failed, Runner(runner, jobs))
    scenario = make_scenario(options)
    attacked = attack_plan(options) if attacks else None
    if not train_models(options, Console(), plan=plan):
        return
    with shown() as progress:
        if attacked is not None:
            run_attacks(attacked, request, Console(), progress)
            return
        failed = run_experiment(scenario, request, Console(), progress)
    if failed:
        raise typer.Exit(1)


@lab.command()
def train(
    seed: Seed = 0,
    size: Size = 36,
    domain: Domains = None,
    forget: Forget = "pathogens",
    steps: Annotated[int, typer.Option(min=1, help="Steps of teaching.")] = 1400,
    output: Annotated[Path, typer.Option(help="Folder for the models.")] = Path("runs/lab/models"),
) -> None:
    """Teach the tiny reference model and the retrained one, which never saw the forget domain."""
    from defuse.synthetic.models import missing, teach_pair, world_label
    from defuse.synthetic.world import build_world
    from defuse.utils.errors import UsageError

    world = build_world(seed, size, domain or ())
    world.of(forget)
    folder = output / world_label(world, forget)
    if not missing(folder):
        raise UsageError(f"output: {folder} holds both models already; name another folder")
    teach_pair(world, forget, folder, steps)
    typer.echo(f"Written: {folder}")
