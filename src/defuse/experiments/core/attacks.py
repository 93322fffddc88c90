"""An experiment's models under attack: made, attacked in processes, and compared."""

from collections.abc import Iterable, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console

from defuse.attacks.comparison import Results, defence, overview
from defuse.attacks.data import AttackData
from defuse.attacks.registry import ATTACKS, make_configs
from defuse.attacks.report import make_report
from defuse.attacks.run import Request, check, check_folder, read_results, run
from defuse.experiments.core import job
from defuse.experiments.core.answers import FORGET, RETAIN
from defuse.experiments.core.run import OLD_NAMES, REFERENCE, RETRAINED, ExperimentContext
from defuse.experiments.core.scenario import Run, Scenario
from defuse.questions import Question
from defuse.report import Page, Section, render
from defuse.report.format import captioned
from defuse.store import SCHEMA_VERSION, ResultStore
from defuse.unlearning import run as unlearning
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json, write_text
from defuse.utils.progress import SILENT, Progress, duration
from defuse.utils.provenance import versions
from defuse.utils.runner import Runner
from defuse.utils.speed import tokens_per_second
from defuse.utils.workers import local_workers

READING = (
    "The experiment's models under attack: before unlearning, unlearned without and with a "
    "defence, and the retrained model where there is one. A cell is accuracy before → after the "
    "attack, on the n questions of its row. Layers and rephrasings are chosen on other questions "
    "than they are reported on; random directions, units and suffixes are the controls. A suffix, "
    "or a worst word for each question, is chosen with the question's answer, and forget texts may "
    "state what is asked: compare these with the retrained model and with the controls."
)


@dataclass(frozen=True)
class AttackPlan:
    """Which of an experiment's models are attacked, how, and on what.

    `settings`: those of attacks by name; `attacks`: none is all. `work`: of making and
    attacking one model, in tokens pushed once through it, about.
    """

    scenario: Scenario
    data: AttackData
    attacks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    work: float = 1e6

    @property
    def folder(self) -> Path:
        return self.scenario.folder / "attacks"

    @property
    def runs(self) -> dict[str, Run]:
        """The runs that leave the attacked models, by name."""
        return {run.name: run for run in self.scenario.runs}

    def requests(self) -> dict[str, Request]:
        """The attack on each model, by the model's name."""
        source, retrained = self.scenario.model, self.scenario.retrained
        models = {self._name(REFERENCE): source.name}
        models |= {} if retrained is None else {self._name(RETRAINED): retrained}
        models |= {name: run.recipe.output for name, run in self.runs.items()}
        shared = Request(
            source.name,
            self.folder,
            make_configs(list(self.attacks or ATTACKS), settings=self.settings),
            self.data,
            reference=source.name,
            retrained=retrained,
            device=source.device,
            dtype=source.dtype,
            skip_refused=not self.attacks,
        )
        return {
            name: replace(shared, model=model, out=self.folder / name)
            for name, model in models.items()
        }

    def pairs(self) -> list[tuple[str, str]]:
        """The names of each undefended run and of the same run with a defence."""
        runs = self.scenario.runs
        return [
            (plain.name, run.name)
            for run in runs
            for plain in runs
            if (plain.group, plain.seed) == (run.base_group, run.seed) and plain is not run
        ]

    def _name(self, name: str) -> str:
        """The folder of the reference or retrained model; version 0.1.0's, where it is there."""
        old = OLD_NAMES[name]
        return old if (self.folder / old).is_dir() else name


def attack_data(
    scenario: Scenario, forget: int | None = None, retain: int | None = None
) -> AttackData:
    """The scenario's questions as they are, and the texts that its first run reads.

    `forget`: so many questions of the forget set; `retain`: of the retain sets, from each in turn.
    """
    topics = [topic.build() for topic in scenario.runs[0].recipe.topics]
    questions = scenario.questions["reported"]
    retained = questions.asked(RETAIN)
    if retain is not None:
        sets: dict[str, list[Question]] = {}
        for (name, _), question in retained.items():
            sets.setdefault(name, []).append(question)
        rows = zip_longest(*sets.values())
        others = [question for row in rows for question in row if question is not None][:retain]
    else:
        others = list(retained.values())
    return AttackData(
        tuple(questions.asked(FORGET).values())[:forget],
        tuple(others),
        questions.final[0].settings,
        tuple(str(text) for topic in topics for text in topic.forget),
        tuple(str(text) for topic in topics for text in topic.retain),
    )


def run_attacks(
    plan: AttackPlan, wanted: job.Request, console: Console, progress: Progress = SILENT
) -> None:
    """Attack all models that are not attacked yet, in processes of this machine, then report.

    Raises UsageError for results that are there but of other settings or questions.
    """
    requests = plan.requests()
    for request in requests.values():
        check_folder(request)
    todo = {name: request for name, request in requests.items() if missing_share(request)}
    workers = Runner("processes", wanted.runner.jobs).at_a_time(len(todo))
    left = f": {_time_left(plan, todo.values(), workers)} here" if todo else ""
    console.print(f"{len(todo)} of {len(requests)} models to attack{left}.")
    if wanted.plan:
        return
    if not wanted.report:
        progress.start("models under attack", len(todo))
        with local_workers(workers) as submit:
            waiting = {submit(attack, each, plan.runs.get(n)): n for n, each in todo.items()}
            for future in as_completed(waiting):
                future.result()
                progress.advance(1, waiting[future])
    report_attacks(plan, console)


def missing_share(request: Request) -> float:
    """The share of a model's attacks that are not finished."""
    missing = request.configs.keys() - ResultStore(request.out).names()
    return len(missing) / len(request.configs)


def _time_left(plan: AttackPlan, requests: Iterable[Request], workers: int) -> str:
    reference = ExperimentContext(plan.scenario).reference.model
    work = plan.work * sum(map(missing_share, requests))
    return duration(work / (workers * tokens_per_second(reference, threads=1)))


def attack(request: Request, made_by: Run | None = None) -> None:
    """Attack a model; what is finished is not done again. `made_by` makes it if it is not there."""
    if made_by is not None:
        plan = unlearning.check(made_by.recipe)
        if not unlearning.finished(plan):
            unlearning.run(plan)
    for _ in run(check(request)):
        pass


def report_attacks(plan: AttackPlan, console: Console) -> None:
    """A page for each attacked model; tables, page and data of all. Raises UsageError for none."""
    requests, folder = plan.requests(), plan.folder
    found = {name: read_results(request.out) for name, request in requests.items()}
    results: Results = {name: own for name, own in found.items() if own}
    if not results:
        raise UsageError(f"report: nothing is attacked in {folder} yet; run it first")
    for name, own in results.items():
        write_text(
            requests[name].out / "report.html", render(make_report(name, own, requests[name].data))
        )
    tables = [*overview(results), defence(results, plan.pairs())]
    page = Page("Attacks", [READING], [Section("All", tables=tables)])
    write_text(folder / "report.html", render(page))
    write_text(folder / "attacks.md", "\n".join(map(captioned, tables)))
    models = {
        name: {attack: each.as_json() for attack, each in own.items()}
        for name, own in results.items()
    }
    head = {"schema_version": SCHEMA_VERSION, "models": models}
    write_json(folder / "results.json", {**head, "versions": versions()})
    written = "report.html, attacks.md, results.json, and a page for each model"
    console.print(f"Written in {folder}: {written}", highlight=False)
