"""`defuse sweep`: a grid of recipes, on this machine or on a Ray cluster."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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
    out: Annotated[
        Path | None, Option(help="Folder; default: the recipe's output with -sweep behind it.")
    ] = None,
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
    retry_failed: Annotated[
        bool, Option("--retry-failed", help="Try the runs that failed again.")
    ] = False,
    plan: Annotated[bool, Option("--plan", help="Only say what would run.")] = False,
    report: Annotated[bool, Option("--report", help="Only report what is finished.")] = False,
    runner: Annotated[
        Literal["serial", "processes", "ray"],
        Option(help="In this process, in several processes of one thread, or on Ray."),
    ] = "ray",
    form: Annotated[
        Literal["jsonl", "parquet"], Option("--format", help="Of the table of all runs.")
    ] = "jsonl",
    address: Annotated[
        Text, Option(help="Of a Ray cluster that shares this folder; default: this machine.")
    ] = None,
    workers: Annotated[int | None, Option(help="Runs at a time; default: as many as fit.")] = None,
    cpus: Annotated[int, Option(help="Threads of each.")] = 1,
    gpus: Annotated[
        float | None,
        Option(help="GPUs of each, 0.5 for two on one; default: 1 where there is one."),
    ] = None,
) -> None:
    """Unlearn as RECIPE says at every point of GRID, ask each model, and compare the settings.

    Stops and starts as you like: what is finished is kept in OUT.
    """
    from rich.console import Console

    from defuse.evaluate.sources import TokenFiles
    from defuse.experiments.core.ray_cluster import Resources
    from defuse.experiments.sweep.job import Request, Sources, run_sweep
    from defuse.recipes import find_recipe
    from defuse.utils.errors import UsageError
    from defuse.utils.progress import shown

    if perturb is None and (position or control or control_corpus or sentence):
        raise UsageError("perturb: missing; give a file of tokens, or no option about them")
    sources = Sources(
        forget=forget_questions,
        retain=retain_questions,
        forget_subject=forget_subject,
        retain_subject=retain_subject,
        score=score,
        few_shot=few_shot,
        dev=dev,
        limit=limit,
        tokens=None if perturb is None else TokenFiles(perturb, control, control_corpus),
        position=position or Sources.position,
        sentence=sentence,
    )
    request = Request(
        recipe=find_recipe(recipe),
        grid=tuple(grid or ()),
        sources=sources,
        out=out,
        keep=keep,
        retry_failed=retry_failed,
        plan=plan,
        form=form,
        report=report,
        runner=runner,
        resources=Resources(address, workers, cpus, gpus),
    )
    with shown() as progress:
        failed = run_sweep(request, Console(), progress)
    if failed:
        raise typer.Exit(1)
