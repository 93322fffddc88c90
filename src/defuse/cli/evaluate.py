"""`defuse evaluate`: questions to models, clean and perturbed, a result file for each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from defuse.evaluate.job import Job
    from defuse.evaluate.scorer import OnScored

Text = str | None
Option = typer.Option


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Hub id, checkpoint or adapter folder, .gguf file.", show_default=False
        ),
    ],
    questions: Annotated[
        str,
        Option(help="csv (MMLU), json (WMDP), jsonl, parquet or hub dataset (id:config:split)."),
    ],
    out: Annotated[Path, Option(help="Result FILE.json; a FOLDER for several models.")],
    subject: Annotated[Text, Option(help="Subject of the description line, and filter.")] = None,
    few_shot: Annotated[int, Option(help="Answered examples in front.")] = 0,
    dev: Annotated[Text, Option(help="Question file of the examples.")] = None,
    score: Annotated[
        Literal["letters", "cloze"], Option(help="Rank A-D, or the choices' own texts.")
    ] = "letters",
    perturb: Annotated[Text, Option(help="File of forget-tokens, one a line.")] = None,
    position: Annotated[
        Literal["choice", "stem", "before"] | None,
        Option(help="Where a token goes: a wrong choice (default), the stem, a sentence before."),
    ] = None,
    control: Annotated[Text, Option(help="File of control tokens.")] = None,
    control_corpus: Annotated[Text, Option(help="Corpus to draw matching controls from.")] = None,
    sentence: Annotated[Text, Option(help="Sentence before the question, with {token}.")] = None,
    base: Annotated[Text, Option(help="The model before unlearning, for vulnerability.")] = None,
    limit: Annotated[int | None, Option(help="Only the first N questions.")] = None,
    text: Annotated[Text, Option(help="Text file to measure perplexity on.")] = None,
    generate: Annotated[Text, Option(help="File of prompts to continue, one a line.")] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
    seed: Annotated[int, Option(help="Draws tokens, places and bootstraps.")] = 42,
) -> None:
    """Ask MODELS four-choice questions, as they are and with a stray token in them."""
    from defuse.errors import UsageError
    from defuse.evaluate import Settings
    from defuse.evaluate.job import Job, TokenFiles, build_perturbation, check, few_shot_examples
    from defuse.evaluate.text import read_passage
    from defuse.questions import load_questions, load_tokens

    if limit is not None and limit < 1:
        raise UsageError(f"limit: is {limit}; give 1 or more")
    if perturb is None and (position or control or control_corpus or sentence):
        raise UsageError("perturb: missing; give a file of tokens, or no option about them")
    perturbation = None
    if perturb is not None:
        files = TokenFiles(perturb, control, control_corpus)
        where = position or "choice"
        perturbation = build_perturbation(files, where, sentence, models[0], seed)
    job = Job(
        models=tuple(models),
        out=out,
        questions=load_questions(questions, subject=subject, limit=limit),
        settings=Settings(score, subject, few_shot_examples(dev, few_shot, subject), seed),
        perturbation=perturbation,
        base=base,
        text=None if text is None else read_passage(text),
        prompts=None if generate is None else load_tokens(generate),
        device=device,
        dtype=dtype,
        sources={
            "questions": questions,
            "limit": limit,
            "dev": dev,
            "perturb": perturb,
            "control": control,
            "control_corpus": control_corpus,
            "text": text,
        },
    )
    check(job)
    _run_and_show(job)


def _run_and_show(job: "Job") -> None:
    from rich.console import Console
    from rich.progress import Progress

    from defuse.evaluate.job import run
    from defuse.evaluate.tables import show

    bars = Console(stderr=True)
    with Progress(console=bars) as progress:

        def on_model(name: str) -> "OnScored":
            task = progress.add_task(name, total=len(job.questions))
            return lambda count: progress.update(task, advance=count)

        found = list(run(job, on_model))
    base = next((report.evaluation for report, is_base in found if is_base), None)
    evaluations = [report.evaluation for report, is_base in found if not is_base]
    show(evaluations, base, Console())
    Console().print(f"written: {job.out}")
