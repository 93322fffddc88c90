"""`defuse theory`: predicted and measured flip rates of a trigger's effect under noise."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Text = str | None
Option = typer.Option


def theory(
    model: Annotated[str, typer.Argument(help="The unlearned model.", show_default=False)],
    reference: Annotated[str, Option(help="The model before unlearning.")],
    questions: Annotated[str, Option(help="Question file or hub dataset, as for evaluate.")],
    perturb: Annotated[str, Option(help="File of forget-tokens, one a line.")],
    out: Annotated[Path, Option(help="Folder for table, figure and data.")],
    position: Annotated[
        Literal["before", "stem", "choice"], Option(help="Where a token goes.")
    ] = "before",
    sentence: Annotated[Text, Option(help="Sentence before the question, with {token}.")] = None,
    score: Annotated[Literal["letters", "cloze"], Option(help="As for evaluate.")] = "letters",
    subject: Annotated[Text, Option(help="Subject of the description line, and filter.")] = None,
    limit: Annotated[int | None, Option(help="Only the first N questions.")] = None,
    layers: Annotated[list[int] | None, Option(help="Layer; may be repeated.")] = None,
    noise_std: Annotated[
        list[str] | None, Option(help="Such as 0.03 or 1x (the states' own); may be repeated.")
    ] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, Option(help="auto, float32, bfloat16 or float64.")] = "auto",
    seed: Annotated[int, Option(help="Draws tokens, places and noise.")] = 42,
) -> None:
    """How far a forget-token moves MODEL's hidden states, and how often noise turns that around."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from defuse.evaluate import Settings
    from defuse.experiments.theory.job import HEAD, Job, check, run, table
    from defuse.questions import SENTENCE, Perturbation, load_questions, load_tokens

    asked = load_questions(questions, subject=subject, limit=limit)
    perturbation = Perturbation(load_tokens(perturb), position, (), sentence or SENTENCE)
    settings = Settings(score, subject, seed=seed)
    job = Job(
        model,
        reference,
        asked,
        perturbation,
        settings,
        out,
        layers=tuple(layers or ()),
        noise_stds=tuple(noise_std or Job.noise_stds),
        device=device,
        dtype=dtype,
    )
    check(job)
    with Progress(console=Console(stderr=True)) as progress:

        def on_stage(name: str, total: int):  # noqa: ANN202 (a small closure)
            task = progress.add_task(name, total=total)
            return lambda count: progress.update(task, advance=count)

        finding = run(job, on_stage)
    shown = Table(*HEAD, title="flip rates: predicted, and measured on the model itself")
    for row in table(finding):
        shown.add_row(*row)
    Console().print(shown)
    Console().print(f"written: {out}")
