"""`defuse lab --attacks`: base, gold standard and unlearned models under every attack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from defuse.attacks.campaign import defence, overview, side_by_side
from defuse.attacks.job import Order as AttackOrder
from defuse.attacks.job import check, read_results, run
from defuse.attacks.kinds import KINDS, configs
from defuse.attacks.material import Material
from defuse.attacks.page import make_page
from defuse.attacks.results import Result
from defuse.experiment.answers import CLEAN, FORGET
from defuse.experiment.clock import Clock, tokens_per_second
from defuse.experiment.words import markdown_table
from defuse.files import write_json, write_text
from defuse.lab.grid import NOISE_STD, SETTINGS, SHORT_PAIRS, SHORT_SEEDS, Run
from defuse.lab.models import NAMES
from defuse.lab.workers import Place
from defuse.provenance import versions
from defuse.report import Page, Section, render
from defuse.saving import save_model
from defuse.train import unlearn

# What makes every attack run in a few minutes on a tiny model; all else is the kind's own default.
LAB_SETTINGS: tuple[str, ...] = ()
# Work of unlearning and attacking one model, in tokens pushed once through it (measured).
WORK = 1.0e6
SAYING = (
    "Attacks on one's own models: the base, the gold standard that never saw the forget set, and "
    "unlearned models without and with RNA. Each cell is the best (forget set) or the worst "
    "(retain set) of an attack's settings; compare it with the gold standard's, which had as many."
)


@dataclass(frozen=True)
class Subject:
    """A model to attack: one of the pair, or what an unlearning run leaves. `place`: the bench."""

    name: str
    place: Place
    run: Run | None = None

    @property
    def folder(self) -> Path:
        """Where the attacks' results go."""
        return self.place.folder / "attacks" / self.name

    @property
    def model(self) -> Path:
        """Where the model lies, or will lie."""
        if self.run is None:
            return self.place.models / self.name
        return self.place.folder / "attacks" / "models" / self.name

    @property
    def todo(self) -> list[str]:
        """The kinds that are not finished."""
        return [kind for kind in KINDS if not (self.folder / f"{kind}.json").is_file()]


def attack_grid(*, full: bool, only: Sequence[str] = ()) -> list[Run]:
    """RMU and SimNPO without and with RNA; `full`: all methods' own retain losses, all seeds."""
    pairs = list(SETTINGS) if full else SHORT_PAIRS
    return [
        Run(*pair, seed, noise)
        for seed in range(SHORT_SEEDS if full else 1)
        for pair in pairs
        for noise in (None, NOISE_STD[pair[1]])
        if not only or pair[0] in only
    ]


def carry_out(
    runs: Sequence[Run], place: Place, jobs: int, console: Console, *, plan: bool
) -> None:
    """Attack what has not been attacked yet in `jobs` processes (0: nothing), then report."""
    subjects = [*(Subject(name, place) for name in NAMES)]
    subjects += [Subject(run.name, place, run) for run in runs]
    todo = [subject for subject in subjects if subject.todo]
    pace = max(1, jobs) * tokens_per_second(place.bench().base.model)
    clock = Clock(sum(map(_work, todo)), pace)
    console.print(f"{len(todo)} of {len(subjects)} models to attack: {clock.left()} here.")
    if plan:
        return
    check(_order(subjects[0]))
    if jobs and todo:
        for subject in side_by_side(todo, attack_one, min(jobs, len(todo))):
            clock.tick(f"{subject.name} attacked", _work(subject))
    report(subjects, console)


def _work(subject: Subject) -> float:
    return WORK * len(subject.todo) / len(KINDS)


def attack_one(subject: Subject) -> None:
    """Unlearn if that is not done, and attack; what is finished is not done again."""
    if subject.run is not None and not (subject.model / "config.json").is_file():
        _unlearn(subject.run, subject)
    for _ in run(_order(subject)):
        pass


def _unlearn(wanted: Run, subject: Subject) -> None:
    bench = subject.place.bench()
    base, texts = bench.base, bench.texts
    topic = wanted.topic(texts["forget"], texts["retain"], bench.triggers)
    result = unlearn(base.model, base.tokenizer, [topic], wanted.unlearning(), wanted.training())
    save_model(result.model, base.tokenizer, subject.model)


def _order(subject: Subject) -> AttackOrder:
    place = subject.place
    bench = place.bench()
    forms, texts = bench.exam.forms, bench.texts
    material = Material(
        tuple(forms[FORGET]),
        tuple(forms[CLEAN]),
        forget_texts=tuple(texts["forget"]),
        retain_texts=tuple(texts["retain"]),
    )
    base, gold = (str(place.models / name) for name in NAMES)
    return AttackOrder(
        str(subject.model),
        subject.folder,
        configs(list(KINDS), LAB_SETTINGS),
        material,
        reference=base,
        gold=gold,
        device="cpu",
        dtype="float32",
    )


def report(subjects: Sequence[Subject], console: Console) -> None:
    """Tables over all models, and each model's own page."""
    results = {each.name: read_results(each.folder) for each in subjects}
    for name, own in results.items():
        folder = next(each.folder for each in subjects if each.name == name)
        write_text(folder / "report.html", render(make_page(name, own)))
    runs = [each.run for each in subjects if each.run is not None]
    pairs = [(plain.name, run.name) for run in runs for plain in runs if _twins(plain, run)]
    write_overview(results, pairs, subjects[0].place.folder / "attacks", console)


def _twins(plain: Run, defended: Run) -> bool:
    same = (plain.method, plain.retain, plain.seed)
    return (
        plain.noise is None
        and defended.noise is not None
        and same == (defended.method, defended.retain, defended.seed)
    )


def write_overview(
    results: Mapping[str, Mapping[str, Result]],
    pairs: Sequence[tuple[str, str]],
    folder: Path,
    console: Console,
) -> None:
    """Page, Markdown and data of all models side by side."""
    tables = [*overview(results), defence(results, pairs)]
    links = [f"{name}/report.html" for name in results]
    page = Page("Attacks", [SAYING], [Section("All models", tables=tables)])
    write_text(folder / "report.html", render(page))
    text = "\n".join(f"{t.caption}:\n\n{markdown_table(t.head, t.rows)}" for t in tables)
    write_text(folder / "attacks.md", text)
    data: dict[str, Any] = {
        name: {kind: each.as_json() for kind, each in own.items()} for name, own in results.items()
    }
    write_json(folder / "results.json", {"models": data, "versions": versions()})
    console.print(f"written in {folder}: report.html, attacks.md, results.json, {links[0]} …")
