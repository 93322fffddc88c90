"""The whole experiment from an order to its table, figures and data, resumable at every run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from defuse.experiments.core.answers import Answers, load_answers, load_sheets
from defuse.experiments.core.attacks import announce
from defuse.experiments.core.attacks import carry_out as carry_out_campaign
from defuse.experiments.core.attacks import report as report_campaign
from defuse.experiments.core.choice import choose_runs
from defuse.experiments.core.eta import Clock, step_work, tokens_per_second
from defuse.experiments.core.metrics import RIGHT
from defuse.experiments.synthetic.attacks import attack_grid, make_campaign
from defuse.experiments.synthetic.compare import make_defences, make_groups
from defuse.experiments.synthetic.domains import choose_domains
from defuse.experiments.synthetic.exam import Part
from defuse.experiments.synthetic.experiment import Bench, missing_steps
from defuse.experiments.synthetic.figure import draw
from defuse.experiments.synthetic.grid import Run, full_grid, short_grid, tuning_grid
from defuse.experiments.synthetic.models import (
    SHIPPED_FORGET,
    Pair,
    digest,
    is_shipped,
    load_pair,
    missing,
    models_folder,
    teach_pair,
    world_label,
)
from defuse.experiments.synthetic.page import make_page
from defuse.experiments.synthetic.results import rows, summary
from defuse.experiments.synthetic.table import (
    defence_sentences,
    markdown,
    screen_sentences,
    screen_table,
)
from defuse.experiments.synthetic.tuning import regimes, sentences
from defuse.experiments.synthetic.workers import Place, available_cores, run_all
from defuse.experiments.synthetic.world import SEED, SIZE, World, build_world
from defuse.report import embed_figure, render
from defuse.report.plots import save
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json, write_text
from defuse.utils.provenance import versions

QUESTION_TOKENS = 36  # of a question, about
# Of every form of the questions the base model should know KNOWN, and must know REFUSED.
KNOWN, REFUSED = 0.97, 0.9


@dataclass(frozen=True)
class Order:
    """What `defuse lab` was asked for.

    `attacks`: attack models instead of asking them. `plan`: only say what would run. `report`: only
    report what has been finished.
    `seed`, `size` and `domains` (names; none is all) make the world. `only`: methods; none is all.
    `jobs`: runs at a time; None is one a core.
    """

    full: bool = False
    tune: bool = False
    attacks: bool = False
    plan: bool = False
    report: bool = False
    only: tuple[str, ...] = ()
    seed: int = SEED
    size: int = SIZE
    domains: tuple[str, ...] = ()
    forget: str = SHIPPED_FORGET
    output: Path = Path("runs/lab")
    jobs: int | None = None


def carry_out(order: Order) -> None:
    """Do the job; raises UsageError for what does not fit before anything runs."""
    console = Console()
    if order.jobs is not None and order.jobs < 1:
        raise UsageError(f"jobs: {order.jobs} processes; give 1 or more")
    if order.attacks and order.tune:
        raise UsageError("tune: settings of attacks are not tuned; leave out --tune or --attacks")
    runs = choose_runs(
        short_grid,
        full_grid if order.full else None,
        tuning_grid if order.tune else None,
        order.only,
    )
    world = build_world(order.seed, order.size, choose_domains(order.domains))
    world.of(order.forget)
    folder = models_folder(order.output, world, order.forget)
    if lacking := missing(folder):
        console.print(f"Teaching {' and '.join(lacking)} first: about 10 minutes.")
        if order.plan:
            return
        teach_pair(world, order.forget, folder)
    if order.attacks:
        attack(order, world, folder, console)
    else:
        examine(runs, order, world, folder, console)


def attack(order: Order, world: World, models: Path, console: Console) -> None:
    """Attack the pair and what the unlearning runs leave."""
    place = Place(world, order.forget, "reported", models, answers_folder(order, world))
    refuse_other_models(place)
    runs = attack_grid(full=order.full, only=order.only)
    campaign, jobs = make_campaign(runs, place), order.jobs or available_cores()
    clock = announce(campaign, place.bench().base.model, jobs, console)
    if order.plan:
        return
    if not order.report:
        carry_out_campaign(campaign, clock, jobs)
    report_campaign(campaign, console)


def answers_folder(order: Order, world: World) -> Path:
    """Where answers and reports go: worlds other than the shipped models' have their own."""
    shipped = is_shipped(world, order.forget)
    folder = order.output if shipped else order.output / world_label(world, order.forget)
    return folder / "tuning" if order.tune else folder


def examine(
    runs: Sequence[Run],
    order: Order,
    world: World,
    models: Path,
    console: Console,
) -> None:
    """Do the runs that are missing, then report."""
    part: Part = "tuning" if order.tune else "reported"
    place = Place(world, order.forget, part, models, answers_folder(order, world))
    refuse_other_models(place)
    pair = load_pair(models)
    bench = Bench(pair.base, world, order.forget, part, place.folder)
    left = {run: work_left(run, bench) for run in runs}
    todo = [run for run in runs if left[run]]
    jobs = min(order.jobs or available_cores(), max(1, len(todo)))
    clock = Clock(sum(left.values()), jobs * tokens_per_second(pair.base.model))
    console.print(f"{len(todo)} of {len(runs)} runs to do: {clock.left()} on this machine.")
    if order.plan or (order.report and not load_answers(runs, bench.folder)):
        return
    base, gold = (answers_of(name, pair, bench) for name in ("base", "gold"))
    for caution in check_knowledge(base):
        console.print(caution, highlight=False, soft_wrap=True)
    if todo and not order.report:
        for run in run_all(todo, place, jobs):
            clock.tick(run.name, left[run])
    if order.tune:
        finished = load_answers(runs, bench.folder)
        found = "\n".join([*sentences(finished, base), "", regimes(finished, base)])
        write_text(bench.folder / "tuning.md", found)
        console.print(found, highlight=False, markup=False, soft_wrap=True)
    else:
        to = bench.folder / "full" if order.full else bench.folder
        report(runs, bench, base, gold, to, console)


def refuse_other_models(place: Place) -> None:
    """Raise UsageError if the folder's answers were given by models that have changed since."""
    path, found = place.folder / "models.json", {"sha256": digest(place.models)}
    if not path.exists():
        write_json(path, found)
    elif json.loads(path.read_text(encoding="utf-8")) != found:
        raise UsageError(f"output: {place.folder} holds other models' answers; name a new folder")


def check_knowledge(base: Answers) -> list[str]:
    """Cautions about forms of the questions that the base model does not know as it should.

    Vulnerability is measured against the base, so a little less is borne. Raises UsageError for a
    model that knows too little for it to mean anything.
    """
    cautions = []
    for form, sheet in base.items():
        known = sum(bool(answer[RIGHT]) for answer in sheet.values()) / len(sheet)
        said = f"the base model answers {known:.2f} of the questions '{form}'"
        if known < REFUSED:
            raise UsageError(f"lab: {said}; teach it for more steps (defuse lab train --steps)")
        if known < KNOWN:
            cautions.append(f"Take care: {said} and should answer {KNOWN}.")
    return cautions


def work_left(run: Run, bench: Bench) -> float:
    """Tokens' worth of work that a run still needs."""
    steps = missing_steps(run, bench)
    if not steps:
        return 0.0
    training = run.training()
    tokens = training.batch_size * 64
    work = step_work(run.method, run.retain, tokens, tokens)
    asked = sum(len(bench.papers[step == training.steps].questions) for step in steps)
    return max(steps) * work + asked * QUESTION_TOKENS


def answers_of(name: str, pair: Pair, bench: Bench) -> Answers:
    """The base model's or the gold standard's answers, asked once."""
    path = bench.folder / "answers" / f"{name}.json"
    if not path.exists():
        loaded = pair.base if name == "base" else pair.gold
        write_json(path, {"model": name, "answers": bench.papers[True].answers(loaded)})
    return load_sheets(path)


def report(
    runs: Sequence[Run],
    bench: Bench,
    base: Answers,
    gold: Answers,
    folder: Path,
    console: Console,
) -> None:
    """Page, table, figure and data in `folder` of what has been finished."""
    finished = load_answers(runs, bench.folder)
    groups, defences = make_groups(finished, base, gold), make_defences(finished, base)
    figure, said = draw(groups, finished, base), defence_sentences(defences)
    record = {
        "world_seed": bench.world.seed,
        "forget": bench.forget,
        "questions": bench.part,
        "settings": {run.label: asdict(run.setting) for run in finished},
        "versions": versions(),
    }
    page = make_page(
        bench.forget, groups, defences, finished, bench.exam, embed_figure(figure), record
    )
    write_text(folder / "report.html", render(page))
    write_text(folder / "lab.md", f"{markdown(groups)}\n" + "".join(f"- {each}\n" for each in said))
    data = {"rows": list(rows(finished, base, gold)), "summary": summary(groups, defences)}
    write_json(folder / "results.json", {"settings": record, **data})
    save(figure, folder / "lab")
    console.print(screen_table(groups))
    for sentence in screen_sentences(defences):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    written = ("report.html", "results.json", "lab.md", "lab.png", "lab.svg")
    console.print(f"Written in {folder}: {', '.join(written)}", highlight=False)
