"""`defuse theory`: predicted and measured flip rates of a forget-token's effect under noise."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Text = str | None
Option = typer.Option


def theory(
    model: Annotated[str, typer.Argument(help="The unlearned model.", show_default=False)],
    reference: Annotated[str, Option("--reference", help="The model before unlearning.")],
    questions: Annotated[str, Option(help="Question file or hub dataset, as for evaluate.")],
    perturb: Annotated[str, Option(help="File of forget-tokens, one a line.")],
    out: Annotated[Path, Option(help="Folder for table, figure and data.")],
    position: Annotated[
        Literal["before", "stem", "choice"], Option(help="Where the token is inserted.")
    ] = "before",
    sentence: Annotated[Text, Option(help="Sentence before the question, with {token}.")] = None,
    score: Annotated[Literal["letters", "cloze"], Option(help="As for evaluate.")] = "letters",
    subject: Annotated[Text, Option(help="Subject of the description line, and filter.")] = None,
    limit: Annotated[int | None, Option(help="Only the first N questions.")] = None,
    layers: Annotated[list[int] | None, Option(help="Layer; may be repeated.")] = None,
    noise_std: Annotated[
        list[str] | None,
        Option(help="Such as 0.03, or 1x (of the hidden states' own); may be repeated."),
    ] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, Option(help="auto, float32, bfloat16 or float64.")] = "auto",
    seed: Annotated[int, Option(help="Seed of tokens, places and noise.")] = 42,
) -> None:
    """Measure how far a forget-token shifts hidden states, and how often noise reverses its effect.

    Compares the measurements on MODEL and its reference with the predictions of docs/theory.md.
    """
    from defuse.evaluate.sources import Asking
    from defuse.experiments.theory.run import Request, check, run
    from defuse.questions import SENTENCE
    from defuse.report.format import screen_table
    from defuse.utils.progress import shown
    from defuse.utils.screen import Console

    request = Request(
        model,
        reference,
        questions,
        perturb,
        out,
        position,
        sentence or SENTENCE,
        subject,
        Asking(limit=limit, score=score, seed=seed),
        tuple(layers or ()),
        tuple(map(_number, noise_std or Request.noise_stds)),
        device,
        dtype,
    )
    plan = check(request)
    with shown() as progress:
        table = run(plan, progress)
    console = Console()
    console.print(screen_table(table))
    console.print(f"Written: {out}", markup=False)


def _number(text: str | float) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # such as "1x"
