"""`defuse attack`: attacks on an unlearned model, to see whether its forgetting holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from defuse.attacks.data import AttackData
    from defuse.attacks.run import Plan
    from defuse.utils.screen import Console

Text = str | None
Score = Literal["letters", "cloze"]
ASKED, TEXTS, MODELS, RUN = "Questions", "Texts", "Other models", "Running"


def _option(text: str, panel: str | None = None) -> Any:  # noqa: ANN401 (as typer.Option)
    return typer.Option(help=text, rich_help_panel=panel)


def _alias(name: str) -> Any:  # noqa: ANN401 (as typer.Option)
    return typer.Option(name, hidden=True)


def attack(
    model: Annotated[str, typer.Argument(help="Hub id, checkpoint or adapter folder, .gguf file.")],
    out: Annotated[Path, _option("FOLDER for results, tables and report.")],
    forget: Annotated[str, _option("Questions about the forget set.", ASKED)],
    retain: Annotated[str, _option("Questions about the retain set.", ASKED)],
    kind: Annotated[
        list[str] | None,
        typer.Option(help="An attack; repeat for more. Default: all that have what they need."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KIND.FIELD=VALUE, such as quantise.bits=[4]; repeat."),
    ] = None,
    reference: Annotated[Text, _option("The model before unlearning.", MODELS)] = None,
    retrained: Annotated[Text, _option("A model that never saw the forget set.", MODELS)] = None,
    base: Annotated[Text, _alias("--base")] = None,
    gold: Annotated[Text, _alias("--gold")] = None,
    forget_texts: Annotated[
        Text, _option("File or hub dataset; pruning and relearning need both.", TEXTS)
    ] = None,
    retain_texts: Annotated[Text, _option("File or hub dataset.", TEXTS)] = None,
    text_limit: Annotated[int, _option("Only the first N texts of either set.", TEXTS)] = 1000,
    limit: Annotated[int | None, _option("Only the first N questions of each set.", ASKED)] = None,
    few_shot: Annotated[int, _option("Answered examples in front.", ASKED)] = 0,
    dev: Annotated[Text, _option("Question file of the examples.", ASKED)] = None,
    score: Annotated[Score, _option("Rank letters, or the choices' own texts.", ASKED)] = "letters",
    plan: Annotated[bool, typer.Option("--plan", help="Only print what would run.")] = False,
    device: Annotated[str, _option("auto, cpu, cuda or mps.", RUN)] = "auto",
    dtype: Annotated[str, _option("auto, float32, bfloat16, float16, float64.", RUN)] = "auto",
    seed: Annotated[int, _option("Seed of everything that is drawn.", RUN)] = 42,
) -> None:
    """Attack MODEL, your own unlearned one, to see whether its forgetting holds.

    Finished work is kept in OUT; the same command resumes.
    """
    from defuse.attacks.forecast import forecast, lines, without_slow
    from defuse.attacks.registry import ATTACKS, make_configs
    from defuse.attacks.run import Request, check
    from defuse.evaluate.sources import Asking
    from defuse.utils.screen import Console

    files = (forget, retain, forget_texts, retain_texts)
    attacks = list(dict.fromkeys(kind or ATTACKS))
    configs = make_configs(attacks, settings or (), seed)
    checked = check(
        Request(
            model=model,
            out=out,
            configs=configs,
            data=_load(files, text_limit, dev, Asking(few_shot, limit, score, seed)),
            reference=reference or base,
            retrained=retrained or gold,
            device=device,
            dtype=dtype,
            sources=dict(
                zip(("forget", "retain", "forget_texts", "retain_texts"), files, strict=True)
            ),
            skip_refused=not kind,
        )
    )
    seconds = forecast(checked) if plan or not kind else {}
    checked = checked if kind else without_slow(checked, seconds)
    for name, reason in checked.left_out.items():
        Console(stderr=True).print(f"left out: {name} ({reason})", highlight=False, markup=False)
    console = Console()
    if plan:
        for line in lines(checked, seconds):
            console.print(line, highlight=False, markup=False)
    else:
        _run(checked, console)


def _run(plan: "Plan", console: "Console") -> None:
    from defuse.attacks.report import cautions, make_report, markdown, screen_table
    from defuse.attacks.run import read_results, run
    from defuse.report import render
    from defuse.utils.files import write_text
    from defuse.utils.progress import shown

    out, data, results = plan.request.out, plan.request.data, {}
    with shown() as progress:
        for result in run(plan, progress):
            console.print(screen_table(result))
            results = read_results(out)  # written each time: the next attack may fail
            write_text(out / "attacks.md", markdown(results, data))
            write_text(out / "report.html", render(make_report(plan.request.model, results, data)))
    for sentence in cautions(results, data):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    written = f"written: {out / 'report.html'}, attacks.md, {', '.join(results)} (.json)"
    console.print(written, highlight=False, markup=False)


def _load(
    files: tuple[str, str, Text, Text],
    text_limit: int,
    dev: Text,
    asking: Any,  # noqa: ANN401 (Asking, which is imported late)
) -> "AttackData":
    from defuse.attacks.data import AttackData
    from defuse.data.corpora import load_texts
    from defuse.evaluate.sources import load_part

    asked = [load_part(file, None, dev, asking) for file in map(str, files[:2])]
    texts = [
        () if source is None else tuple(map(str, load_texts(source, limit=text_limit)))
        for source in files[2:]
    ]
    return AttackData(asked[0].questions, asked[1].questions, asked[0].settings, *texts)
