"""`defuse evaluate`: questions to models, clean and perturbed, a result file for each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from defuse.evaluate.run import Job
    from defuse.questions import Perturbation
    from defuse.utils.distributed import Processes

Text = str | None
Score = Literal["letters", "cloze"]
Position = Literal["choice", "stem", "before"]
TOFU = "tofu"
FILE, SUITE, TOKENS, RUN = "Questions of a file", "Suites", "Perturbation", "Running"


def _option(text: str, panel: str | None = None) -> Any:  # noqa: ANN401 (as typer.Option)
    return typer.Option(help=text, rich_help_panel=panel)


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Hub id, checkpoint or adapter folder, .gguf file.", show_default=False
        ),
    ],
    out: Annotated[Path, _option("Result FILE.json; a FOLDER for several models.")],
    few_shot: Annotated[int, _option("Answered examples in front.")] = 0,
    limit: Annotated[int | None, _option("Only the first N questions (of each subject).")] = None,
    score: Annotated[Score, _option("Rank A-D, or the choices' own texts.")] = "letters",
    base: Annotated[Text, _option("The model before unlearning, for vulnerability.")] = None,
    text: Annotated[Text, _option("Text file to measure perplexity on.")] = None,
    generate: Annotated[Text, _option("File of prompts to continue, one a line.")] = None,
    questions: Annotated[
        Text, _option("csv (MMLU), json (WMDP), jsonl, parquet or hub dataset.", FILE)
    ] = None,
    subject: Annotated[Text, _option("Of the description line, and filter.", FILE)] = None,
    dev: Annotated[Text, _option("Question file of the examples.", FILE)] = None,
    suite: Annotated[
        Text,
        _option("mmlu, mmlu-perturbed, mmlu-SUBJECT, wmdp, wmdp-retain[-perturbed], tofu.", SUITE),
    ] = None,
    data: Annotated[
        Text, _option("Folder of its files, or hub dataset in place of its own.", SUITE)
    ] = None,
    subjects: Annotated[
        Text, _option("Only these, with commas between; for tofu forget01, 05 or 10.", SUITE)
    ] = None,
    gold: Annotated[
        Text, _option("tofu: the model taught the retain part alone, or its answers.", SUITE)
    ] = None,
    perturb: Annotated[Text, _option("File of forget-tokens, one a line.", TOKENS)] = None,
    position: Annotated[
        Position | None,
        _option("A wrong choice (default), the stem, or a sentence before.", TOKENS),
    ] = None,
    control: Annotated[Text, _option("File of control tokens.", TOKENS)] = None,
    control_corpus: Annotated[Text, _option("Draw matching controls from it.", TOKENS)] = None,
    sentence: Annotated[Text, _option("Sentence before, with {token}.", TOKENS)] = None,
    device: Annotated[str, _option("auto, cpu, cuda or mps.", RUN)] = "auto",
    dtype: Annotated[str, _option("auto, float32, bfloat16, float16, float64.", RUN)] = "auto",
    seed: Annotated[int, _option("Draws tokens, places and bootstraps.", RUN)] = 42,
) -> None:
    """Ask MODELS four-choice questions, as they are and with a stray token in them.

    What is finished is kept beside OUT; the same command goes on from there.
    """
    from defuse.evaluate.perplexity import read_passage
    from defuse.evaluate.run import Job, check
    from defuse.evaluate.sources import Asking, load_part
    from defuse.evaluate.tasks import choose_suite, load_parts
    from defuse.models.load import resolve_device
    from defuse.questions import load_tokens
    from defuse.utils.distributed import join_processes
    from defuse.utils.errors import UsageError

    if suite == TOFU:
        from defuse.cli.tofu import ask_tofu
        from defuse.experiments.tofu.job import Suite

        useless = {
            "questions": questions,
            "few-shot": few_shot or None,
            "base": base,
            "perturb": perturb,
            "text": text,
            "generate": generate,
        }
        asked = Suite(data or Suite.data, subjects or Suite.forget, limit)
        ask_tofu(models, out, asked, gold, useless, (device, dtype))
        return
    if gold is not None:
        raise UsageError(f"gold: {gold} goes with --suite tofu; leave it out")
    asking = Asking(few_shot, limit, score, seed)
    _check_source(
        questions, suite, {"subject": subject, "dev": dev}, {"data": data, "subjects": subjects}
    )
    tokens = _tokens(perturb, control, control_corpus, position, sentence, models[0], seed)
    chosen = None if suite is None else choose_suite(suite, _names(subjects))
    if chosen is None:
        parts = [load_part(str(questions), subject, dev, asking)]
    else:
        parts = load_parts(chosen, data, asking)
    perturbation = tokens or (chosen and chosen.perturbation)
    _check_base(base, perturbation)
    job = Job(
        models=tuple(models),
        out=out,
        parts=tuple(parts),
        perturbation=perturbation,
        base=base,
        groups=chosen.groups if chosen else {},
        text=None if text is None else read_passage(text),
        prompts=None if generate is None else load_tokens(generate),
        device=device,
        dtype=dtype,
        sources={
            "questions": questions,
            "suite": suite,
            "data": data,
            "subjects": subjects,
            "limit": limit,
            "dev": dev,
            "perturb": perturb,
            "control": control,
            "control_corpus": control_corpus,
            "text": text,
        },
    )
    check(job)
    _run_and_show(job, join_processes(resolve_device(device)))


def _check_source(
    questions: Text, suite: Text, of_file: dict[str, Text], of_suite: dict[str, Text]
) -> None:
    from defuse.utils.errors import UsageError

    if (questions is None) == (suite is None):
        raise UsageError("questions: give one of --questions FILE and --suite NAME")
    needed, useless = ("suite", of_suite) if suite is None else ("questions", of_file)
    for name, value in useless.items():
        if value is not None:
            raise UsageError(f"{name}: {value} goes with --{needed}; leave it out")


def _names(subjects: Text) -> list[str]:
    return [name.strip() for name in (subjects or "").split(",") if name.strip()]


def _tokens(
    perturb: Text,
    control: Text,
    control_corpus: Text,
    position: Position | None,
    sentence: Text,
    model: str,
    seed: int,
) -> "Perturbation | None":
    from defuse.evaluate.sources import TokenFiles, build_perturbation
    from defuse.utils.errors import UsageError

    if perturb is not None:
        files = TokenFiles(perturb, control, control_corpus)
        return build_perturbation(files, position or "choice", sentence, model, seed)
    if position or control or control_corpus or sentence:
        raise UsageError("perturb: missing; give a file of tokens, or no option about them")
    return None


def _check_base(base: Text, perturbation: "Perturbation | None") -> None:
    from defuse.utils.errors import UsageError

    if base is not None and (perturbation is None or not perturbation.controls):
        raise UsageError(
            "base: vulnerability needs perturbed questions and controls; give --perturb, and "
            "--control or --control-corpus"
        )


def _run_and_show(job: "Job", processes: "Processes") -> None:
    from rich.console import Console

    from defuse.cli.progress import answers_shown
    from defuse.evaluate.run import run
    from defuse.evaluate.tables import show

    with answers_shown(processes) as on_model:
        found = list(run(job, on_model, processes))
    base = next((report.evaluation for report, is_base in found if is_base), None)
    evaluations = [report.evaluation for report, is_base in found if not is_base]
    console = Console(quiet=not processes.is_first)
    show(evaluations, base, console, job.groups)
    console.print(f"written: {job.out}")
