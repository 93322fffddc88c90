"""`defuse sweep`: a grid of recipes, on this machine or on a Ray cluster."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from defuse.cli.options import Jobs, Plan, Report, RetryFailed, RunnerName

Text = str | None
Option = typer.Option


def sweep(
    recipe: Annotated[
        Path,
        typer.Argument(help="A YAML recipe, or the name of a shipped one.", show_default=False),
    ],
    forget_questions: Annotated[
        str, Option(help="Questions about what is forgotten, as for evaluate.")
    ],
    retain_questions: Annotated[str, Option(help="Questions about what is to stay.")],
    grid: Annotated[
        list[str] | None,
        typer.Argument(help="field=value,value or field=0..4, such as noise.std=0,0.3x,1x"),
    ] = None,
    output: Annotated[
        Path | None, Option(help="Folder; default: the recipe's output with -sweep behind it.")
    ] = None,
    out: Annotated[Path | None, Option(hidden=True)] = None,  # its name in 0.1.0
    forget_subject: Annotated[Text, Option(help="As --subject of evaluate.")] = None,
    retain_subject: Annotated[Text, Option(help="As --subject of evaluate.")] = None,
    few_shot: Annotated[int, Option(help="Answered examples in front.")] = 0,
    dev: Annotated[Text, Option(help="Question file of the examples.")] = None,
    score: Annotated[
        Literal["letters", "cloze"], Option(help="Rank A-D, or the choices' own texts.")
    ] = "letters",
    limit: Annotated[int | None, Option(help="Only the first N questions of each file.")] = None,
    perturb: Annotated[
        Text, Option(help="File of forget-tokens to put into the retain questions.")
    ] = None,
    position: Annotated[
        Literal["choice", "stem", "before"] | None,
        Option(help="Where a token goes: a wrong choice (default), the stem, a sentence before."),
    ] = None,
    control: Annotated[Text, Option(help="File of control tokens.")] = None,
    control_corpus: Annotated[Text, Option(help="Corpus to draw matching controls from.")] = None,
    sentence: Annotated[Text, Option(help="Sentence before the question, with {token}.")] = None,
    keep: Annotated[bool, Option("--keep", help="Write every run's checkpoint, too.")] = False,
    retry_failed: RetryFailed = False,
    plan: Plan = False,
    report: Report = False,
    runner: RunnerName = "ray",
    form: Annotated[
        Literal["jsonl", "parquet"], Option("--format", help="Of the table of all runs.")
    ] = "jsonl",
    address: Annotated[
        Text, Option(help="Of a Ray cluster that shares this folder; default: this machine.")
    ] = None,
    jobs: Jobs = None,
    workers: Annotated[int | None, Option(hidden=True)] = None,  # its name in 0.1.0
    cpus: Annotated[int, Option(help="Threads of each run on Ray.")] = 1,
    gpus: Annotated[
        float | None,
        Option(help="GPUs of each, 0.5 for two on one; default: 1 where there is one."),
    ] = None,
) -> None:
    """Unlearn as RECIPE says at every point of GRID, ask each model, and compare the settings.

    Stops and starts as you like: what is finished is kept in OUTPUT.
    """
    import shlex
    import sys

    from defuse.experiments.core.job import Request, run_experiment
    from defuse.experiments.sweep.scenario import Options, make_scenario
    from defuse.recipes import find_recipe
    from defuse.utils.errors import UsageError
    from defuse.utils.progress import shown
    from defuse.utils.runner import Runner
    from defuse.utils.screen import Console

    tokens = {"control_tokens": control, "control_corpus": control_corpus, "sentence": sentence}
    if perturb is None and (position or any(tokens.values())):
        raise UsageError("perturb: missing; give a file of tokens, or no option about them")
    tokens |= {"forget_tokens": perturb, "positions": [position or "choice"]}
    asked = {
        "questions": {
            "forget": {"source": forget_questions, "subject": forget_subject},
            "retain": {"retain": {"source": retain_questions, "subject": retain_subject}},
        },
        "score": score,
        "few_shot": few_shot,
        "dev": dev,
        "limit": limit,
        "perturb": None if perturb is None else tokens,
    }
    command = shlex.join(["defuse", *sys.argv[1:]])
    folder, at_a_time = output or out, workers if jobs is None else jobs
    request = Request(
        plan=plan,
        report=report,
        retry_failed=retry_failed,
        runner=Runner(runner, at_a_time, address, cpus, gpus),
    )
    with shown() as progress:
        options = Options(
            find_recipe(recipe), tuple(grid or ()), asked, folder, keep, form, command
        )
        failed = run_experiment(make_scenario(options), request, Console(), progress)
    if failed:
        raise typer.Exit(1)
