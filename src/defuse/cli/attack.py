"""`defuse attack`: what brings unlearned knowledge back, and what breaks the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from defuse.attacks.data import Material

Text = str | None
Score = Literal["letters", "cloze"]
ASKED, TEXTS, MODELS, RUN = "Questions", "Texts", "Other models", "Running"


def _option(text: str, panel: str | None = None) -> Any:  # noqa: ANN401 (as typer.Option)
    return typer.Option(help=text, rich_help_panel=panel)


def attack(
    model: Annotated[str, typer.Argument(help="Hub id, checkpoint or adapter folder, .gguf file.")],
    out: Annotated[Path, _option("FOLDER for results, tables and page.")],
    forget: Annotated[str, _option("Questions about what was to be forgotten.", ASKED)],
    retain: Annotated[str, _option("Questions about what was to be kept.", ASKED)],
    kind: Annotated[
        list[str] | None,
        typer.Option(help="An attack; repeat for more. Default: all that have what they need."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KIND.FIELD=VALUE, such as quantise.bits=[4]; repeat."),
    ] = None,
    reference: Annotated[Text, _option("The model before unlearning.", MODELS)] = None,
    gold: Annotated[Text, _option("A model that never knew the forget set.", MODELS)] = None,
    forget_texts: Annotated[
        Text, _option("File or hub dataset; pruning and relearning need both.", TEXTS)
    ] = None,
    retain_texts: Annotated[Text, _option("File or hub dataset.", TEXTS)] = None,
    text_limit: Annotated[int, _option("The first so many texts of either.", TEXTS)] = 1000,
    limit: Annotated[int | None, _option("Only the first N questions of either.", ASKED)] = None,
    few_shot: Annotated[int, _option("Answered examples in front.", ASKED)] = 0,
    dev: Annotated[Text, _option("Question file of the examples.", ASKED)] = None,
    score: Annotated[Score, _option("Rank A-D, or the choices' own texts.", ASKED)] = "letters",
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would run.")] = False,
    device: Annotated[str, _option("auto, cpu, cuda or mps.", RUN)] = "auto",
    dtype: Annotated[str, _option("auto, float32, bfloat16, float16, float64.", RUN)] = "auto",
    seed: Annotated[int, _option("Of all that is drawn.", RUN)] = 42,
) -> None:
    """Attack MODEL, your own unlearned one, to see whether its forgetting holds.

    What is finished is kept in OUT; the same command goes on from there.
    """
    from rich.console import Console
    from rich.markup import escape

    from defuse.attacks.registry import KINDS, configs, possible
    from defuse.attacks.report import make_page
    from defuse.attacks.run import Order, check, read_results, run, without_refused
    from defuse.attacks.tables import markdown, screen_table
    from defuse.evaluate.sources import Asking
    from defuse.report import render
    from defuse.utils.files import write_text

    files = (forget, retain, forget_texts, retain_texts)
    asking = Asking(few_shot, limit, score, seed)
    kinds = list(dict.fromkeys(kind or KINDS))
    chosen = configs(kinds, settings or (), seed)
    material = _material(files, text_limit, dev, asking)
    order = Order(
        model=model,
        out=out,
        configs=chosen if kind else possible(chosen, material, reference, gold),
        material=material,
        reference=reference,
        gold=gold,
        device=device,
        dtype=dtype,
        sources=dict(zip(("forget", "retain", "forget_texts", "retain_texts"), files, strict=True)),
    )
    console, progress = Console(), Console(stderr=True)
    if kind:
        check(order)
    else:
        order, reasons = without_refused(order)
        for name, reason in reasons.items():
            progress.print(f"left out: {name} ({reason})", highlight=False, markup=False)
    if plan:
        for name, config in order.configs.items():
            console.print(f"{name}: {config}", highlight=False, markup=False)
        return
    results = {}
    with progress.status("loading") as status:
        for result in run(order, lambda name, found: status.update(escape(f"{name}: {found}"))):
            console.print(screen_table(result))
            results = read_results(out)  # written each time: the next kind may fail or be killed
            write_text(out / "attacks.md", markdown(results))
            write_text(out / "report.html", render(make_page(model, results)))
    written = f"written: {out / 'report.html'}, attacks.md, {', '.join(results)} (.json)"
    console.print(written, highlight=False, markup=False)


def _material(
    files: tuple[str, str, Text, Text],
    text_limit: int,
    dev: Text,
    asking: Any,  # noqa: ANN401 (Asking, which is imported late)
) -> "Material":
    from defuse.attacks.data import Material
    from defuse.data.corpora import load_texts
    from defuse.evaluate.sources import load_part

    asked = [load_part(file, None, dev, asking) for file in map(str, files[:2])]
    texts = [
        () if source is None else tuple(map(str, load_texts(source, limit=text_limit)))
        for source in files[2:]
    ]
    return Material(asked[0].questions, asked[1].questions, asked[0].settings, *texts)
