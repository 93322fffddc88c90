"""`defuse evaluate`: models on questions, original and perturbed, with a result file for each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from defuse.evaluate.request import Request
    from defuse.evaluate.tasks.tofu.figures import Figures
    from defuse.utils.screen import Console

Text = str | None
Score = Literal["letters", "cloze"]
Position = Literal["choice", "stem", "before"]
TOFU = "tofu"
FILE, SUITE, TOKENS, RUN = "Questions of a file", "Benchmarks", "Perturbation", "Run"


def _option(text: str, panel: str | None = None) -> Any:  # noqa: ANN401 (as typer.Option)
    return typer.Option(help=text, rich_help_panel=panel)


def _old_name(name: str) -> Any:  # noqa: ANN401
    """The name of an option in version 0.1.0."""
    return typer.Option(name, hidden=True)


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Hub id, checkpoint or adapter folder, .gguf file.", show_default=False
        ),
    ],
    out: Annotated[Path, _option("Result FILE.json; a FOLDER for several models.")],
    few_shot: Annotated[int, _option("Number of answered examples in front.")] = 0,
    limit: Annotated[int | None, _option("Only the first N questions (of each subject).")] = None,
    score: Annotated[
        Score | None,
        _option("Rank the choices' letters, or their own texts. Default: letters, or the suite's."),
    ] = None,
    reference: Annotated[
        Text, _option("The model before unlearning; needed for vulnerability.")
    ] = None,
    text: Annotated[Text, _option("Text file to measure perplexity on.")] = None,
    generate: Annotated[Text, _option("File of prompts to continue, one a line.")] = None,
    no_text: Annotated[bool, _option("Leave questions' texts out of the result file.")] = False,
    questions: Annotated[
        Text, _option("csv (MMLU), json (WMDP), jsonl, parquet or hub dataset.", FILE)
    ] = None,
    subject: Annotated[
        Text, _option("Subject of the description line; other rows are left out.", FILE)
    ] = None,
    dev: Annotated[Text, _option("Question file to take the examples from.", FILE)] = None,
    suite: Annotated[
        Text,
        _option(
            "mmlu, mmlu-perturbed, mmlu-SUBJECT, wmdp, wmdp-retain[-perturbed], arc, truthfulqa, "
            "tofu.",
            SUITE,
        ),
    ] = None,
    data: Annotated[
        Text, _option("Folder with its files, or a hub dataset instead of its own.", SUITE)
    ] = None,
    subjects: Annotated[
        Text, _option("Only these, separated by commas; for tofu forget01, 05 or 10.", SUITE)
    ] = None,
    retrained: Annotated[
        Text, _option("tofu: the model retrained on the retain set alone, or its answers.", SUITE)
    ] = None,
    perturb: Annotated[Text, _option("File of forget-tokens, one a line.", TOKENS)] = None,
    position: Annotated[
        Position | None,
        _option("A wrong choice (default), the stem, or a sentence before.", TOKENS),
    ] = None,
    control: Annotated[Text, _option("File of control tokens, one a line.", TOKENS)] = None,
    control_corpus: Annotated[
        Text, _option("File of texts to draw matching control tokens from.", TOKENS)
    ] = None,
    sentence: Annotated[Text, _option("The sentence before, with {token}.", TOKENS)] = None,
    device: Annotated[str, _option("auto, cpu, cuda or mps.", RUN)] = "auto",
    dtype: Annotated[str, _option("auto, float32, bfloat16, float16, float64.", RUN)] = "auto",
    seed: Annotated[int, _option("Seed of tokens, places and bootstraps.", RUN)] = 42,
    base: Annotated[Text, _old_name("--base")] = None,
    gold: Annotated[Text, _old_name("--gold")] = None,
) -> None:
    """Evaluate MODELS on multiple-choice questions, with and without a forget-token in them.

    Finished work is kept next to OUT; after an interruption the same command resumes.
    """
    from defuse.evaluate.request import Request
    from defuse.evaluate.sources import Asking, TokenFiles
    from defuse.utils.errors import UsageError

    reference, retrained = reference or base, retrained or gold
    if suite == TOFU:
        other_options = {
            "questions": questions,
            "few-shot": few_shot or None,
            "score": score,
            "reference": reference,
            "perturb": perturb,
            "text": text,
            "generate": generate,
        }
        _evaluate_tofu(
            models, out, (data, subjects, limit), retrained, other_options, (device, dtype)
        )
        return
    if retrained is not None:
        raise UsageError(f"retrained: {retrained} goes with --suite tofu; leave it out")
    if perturb is None and (control or control_corpus):
        raise UsageError("perturb: missing; give a file of tokens, or no option about them")
    request = Request(
        models=tuple(models),
        out=out,
        questions=questions,
        subject=subject,
        dev=dev,
        suite=suite,
        data=data,
        subjects=tuple(_names(subjects)),
        asking=Asking(few_shot, limit, score, seed),
        tokens=None if perturb is None else TokenFiles(perturb, control, control_corpus),
        position=position,
        sentence=sentence,
        reference=reference,
        text=text,
        prompts=generate,
        device=device,
        dtype=dtype,
        keep_text=not no_text,
    )
    _run_and_show(request)


def _evaluate_tofu(
    models: list[str],
    out: Path,
    asked: tuple[Text, Text, int | None],
    retrained: Text,
    other_options: dict[str, object],
    place: tuple[str, str],
) -> None:
    from defuse.evaluate.tasks.tofu.suite import Request, Suite, check, run
    from defuse.utils.errors import UsageError
    from defuse.utils.progress import shown
    from defuse.utils.screen import Console

    for name, value in other_options.items():
        if value is not None:
            raise UsageError(f"{name}: {value} does not go with --suite tofu; leave it out")
    data, subjects, limit = asked
    suite = Suite(data or Suite.data, subjects or Suite.forget, limit)
    plan = check(Request(models, out, suite, retrained, *place))
    with shown() as progress:
        found = dict(run(plan, progress))
    _show_tofu(found, Console())
    Console().print(f"written: {out}", markup=False, highlight=False, soft_wrap=True)


def _show_tofu(found: "Mapping[str, Figures]", console: "Console") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from defuse.evaluate.tasks.tofu.figures import COLUMNS, figure_cells
    from defuse.report.format import stacked

    table = Table("model", *COLUMNS, box=SIMPLE_HEAD)
    for name, figures in found.items():
        table.add_row(name, *figure_cells(figures, stacked))
    console.print(table)


def _names(subjects: Text) -> list[str]:
    return [name.strip() for name in (subjects or "").split(",") if name.strip()]


def _run_and_show(request: "Request") -> None:
    from defuse.evaluate.request import check
    from defuse.evaluate.run import run
    from defuse.evaluate.tables import show
    from defuse.models.load import resolve_device
    from defuse.utils.distributed import join_processes
    from defuse.utils.progress import shown
    from defuse.utils.screen import Console

    plan = check(request)
    processes = join_processes(resolve_device(plan.device))
    with shown(quiet=not processes.is_first) as progress:
        results = run(plan, progress, processes)
    console = Console(quiet=not processes.is_first)
    show(results, console, plan.groups)
    console.print(f"written: {plan.out}", markup=False, highlight=False, soft_wrap=True)
