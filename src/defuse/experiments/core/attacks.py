"""Several models under the same attacks: made, attacked in processes, and set side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel

from defuse.attacks.report import make_report
from defuse.attacks.run import Request, check, check_folder, read_results, run
from defuse.experiments.core.attack_tables import Results, defence, overview
from defuse.experiments.core.eta import Clock, tokens_per_second
from defuse.experiments.core.runner import side_by_side
from defuse.report import Page, Section, render
from defuse.report.format import captioned
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json, write_text
from defuse.utils.provenance import versions

SAYING = (
    "One's own models under attack: before unlearning, unlearned without and with a defence, and, "
    "where there is one, the gold standard that never saw the forget set. Each cell is accuracy "
    "before → after, on the n questions of its row. Layers and ways are chosen on other questions "
    "than they are reported on; random directions, units and suffixes are the controls. A suffix "
    "or a worst word of each question's own is picked with its answer, and forget texts may state "
    "what is asked: compare these with the gold standard's and the controls'."
)


@dataclass(frozen=True)
class Subject:
    """A model to attack. `make` writes it to `request.model` (a folder) unless it is there."""

    name: str
    request: Request
    make: Callable[[], None] | None = None

    @property
    def todo(self) -> list[str]:
        """The attacks that are not finished."""
        return [attack for attack in self.request.configs if not self._file(attack).is_file()]

    def _file(self, attack: str) -> Path:
        return self.request.out / f"{attack}.json"


@dataclass(frozen=True)
class Campaign:
    """Models by name, which of them are a plain and a defended one, and where the tables go.

    `work`: of making and attacking one model, in tokens pushed once through it, about.
    """

    subjects: Sequence[Subject]
    pairs: Sequence[tuple[str, str]]
    folder: Path
    work: float

    @property
    def todo(self) -> list[Subject]:
        """The models that some attack is still to be run on."""
        return [subject for subject in self.subjects if subject.todo]

    def work_left(self, subject: Subject) -> float:
        """What is still to be done on one model."""
        return self.work * len(subject.todo) / len(subject.request.configs)


def announce(campaign: Campaign, model: PreTrainedModel, jobs: int, console: Console) -> Clock:
    """Say how long it will take in `jobs` processes with a thread each, for models like `model`.

    Raises UsageError for results that are there but of other settings or questions.
    """
    for subject in campaign.subjects:
        check_folder(subject.request)
    pace = jobs * tokens_per_second(model, threads=1)
    clock = Clock(sum(map(campaign.work_left, campaign.todo)), pace)
    there = len(campaign.subjects)
    console.print(f"{len(campaign.todo)} of {there} models to attack: {clock.left()} here.")
    return clock


def carry_out(campaign: Campaign, clock: Clock, jobs: int) -> None:
    """Attack what is to be attacked in `jobs` processes, with a thread each."""
    work = {subject.name: campaign.work_left(subject) for subject in campaign.todo}
    workers = max(1, min(jobs, len(work)))
    for subject in side_by_side(campaign.todo, attack, workers, torch.set_num_threads, 1):
        clock.tick(f"{subject.name} attacked", work[subject.name])


def attack(subject: Subject) -> None:
    """Make the model if need be, and attack it; what is finished is not done again."""
    if subject.make is not None and not (Path(subject.request.model) / "config.json").is_file():
        subject.make()
    for _ in run(check(subject.request)):
        pass


def report(campaign: Campaign, console: Console) -> None:
    """A page for each model that was attacked, and tables, page and data of all of them.

    Raises UsageError where none was.
    """
    found = {each.name: read_results(each.request.out) for each in campaign.subjects}
    results: Results = {name: own for name, own in found.items() if own}
    if not results:
        raise UsageError(f"report: nothing was attacked in {campaign.folder} yet; run it first")
    attacked = [each for each in campaign.subjects if each.name in results]
    for each in attacked:
        page = make_report(each.name, results[each.name])
        write_text(each.request.out / "report.html", render(page))
    pairs = [pair for pair in campaign.pairs if all(name in results for name in pair)]
    tables = [*overview(results), defence(results, pairs)]
    folder = campaign.folder
    write_text(
        folder / "report.html", render(Page("Attacks", [SAYING], [Section("All", tables=tables)]))
    )
    write_text(folder / "attacks.md", "\n".join(map(captioned, tables)))
    data = {
        name: {attack: each.as_json() for attack, each in own.items()}
        for name, own in results.items()
    }
    write_json(folder / "results.json", {"models": data, "versions": versions()})
    pages = f"{attacked[0].request.out}/report.html"
    console.print(f"written in {folder}: report.html, attacks.md, results.json", highlight=False)
    console.print(f"and a page for each model, such as {pages}", highlight=False)
