"""An experiment's models under attack: made, attacked in processes, and compared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console

from defuse.attacks.data import AttackData
from defuse.attacks.registry import ATTACKS, make_configs
from defuse.attacks.report import make_report
from defuse.attacks.run import Request, check, check_folder, read_results, run
from defuse.experiments.core.answers import FORGET, RETAIN
from defuse.experiments.core.attack_tables import Results, defence, overview
from defuse.experiments.core.eta import tokens_per_second
from defuse.experiments.core.run import OLD_NAMES, REFERENCE, RETRAINED, ExperimentContext
from defuse.experiments.core.runner import available_cores, begin_worker, local_processes
from defuse.experiments.core.scenario import Run, Scenario
from defuse.questions import Question
from defuse.report import Page, Section, render
from defuse.report.format import captioned
from defuse.unlearning import run as unlearning_run
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json, write_text
from defuse.utils.progress import SILENT, Progress, duration
from defuse.utils.provenance import versions

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

    `settings`: overrides such as "quantise.bits=[4]"; `attacks`: none is all. `work`: of making and
    attacking one model, in tokens pushed once through it, about.
    """

    scenario: Scenario
    data: AttackData
    attacks: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    work: float = 1e6

    @property
    def folder(self) -> Path:
        return self.scenario.folder / "attacks"

    def subjects(self) -> list["Subject"]:
        """Every model to attack."""
        named = [(self._name(REFERENCE), self.scenario.model.name, None)]
        if self.scenario.retrained is not None:
            named.append((self._name(RETRAINED), self.scenario.retrained, None))
        models = self.folder / "models"
        named += [(run.name, str(models / run.name), run) for run in self.scenario.runs]
        return [Subject(name, self._request(name, model), made) for name, model, made in named]

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

    def _request(self, name: str, model: str) -> Request:
        source = self.scenario.model
        return Request(
            model,
            self.folder / name,
            make_configs(list(self.attacks or ATTACKS), self.settings),
            self.data,
            reference=source.name,
            retrained=self.scenario.retrained,
            device=source.device,
            dtype=source.dtype,
            skip_refused=not self.attacks,
        )


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


def as_overrides(attacks: Mapping[str, Mapping[str, Any] | None]) -> tuple[str, ...]:
    """The settings of attacks by their names, such as "quantise.bits=[4]"."""
    return tuple(
        f"{name}.{field_}={json.dumps(value)}"
        for name, settings in attacks.items()
        for field_, value in (settings or {}).items()
    )


@dataclass(frozen=True)
class Subject:
    """A model to attack; a `run` makes it unless it is there."""

    name: str
    request: Request
    run: Run | None = None

    @property
    def todo(self) -> list[str]:
        """The attacks that are not finished."""
        out = self.request.out
        return [name for name in self.request.configs if not (out / f"{name}.json").is_file()]


def run_attacks(
    plan: AttackPlan,
    console: Console,
    *,
    jobs: int | None = None,
    only_plan: bool = False,
    only_report: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Attack all models that are not attacked yet, then report.

    Raises UsageError for results that are there but of other settings or questions.
    """
    subjects = plan.subjects()
    for subject in subjects:
        check_folder(subject.request)
    todo = [subject for subject in subjects if subject.todo]
    workers = max(1, min(jobs or available_cores(), len(todo)))
    console.print(_announcement(plan, subjects, todo, workers))
    if only_plan:
        return
    if not only_report:
        progress.start("models under attack", len(todo))
        for name in _in_processes(todo, workers):
            progress.advance(1, name)
    report_attacks(plan, console)


def _announcement(
    plan: AttackPlan, subjects: Sequence[Subject], todo: Sequence[Subject], workers: int
) -> str:
    said = f"{len(todo)} of {len(subjects)} models to attack"
    if not todo:
        return f"{said}."
    parts = (len(each.todo) / len(each.request.configs) for each in todo)
    pace = workers * tokens_per_second(ExperimentContext(plan.scenario).reference.model, threads=1)
    return f"{said}: {duration(plan.work * sum(parts) / pace)} here."


def _in_processes(subjects: Sequence[Subject], workers: int) -> Iterator[str]:
    """Attack models in processes with one thread each; yields the names as they are done."""
    with local_processes(workers, begin_worker) as submit:
        waiting = {submit(attack, subject): subject.name for subject in subjects}
        for future in as_completed(waiting):
            future.result()
            yield waiting[future]


def attack(subject: Subject) -> None:
    """Make the model unless it is there, and attack it; what is finished is not done again."""
    model = Path(subject.request.model)
    if subject.run is not None and not (model / "config.json").is_file():
        make_model(subject.run, model)
    for _ in run(check(subject.request)):
        pass


def make_model(run_: Run, folder: Path) -> None:
    """Unlearn as a run says, into `folder`."""
    unlearning_run.run(unlearning_run.check(run_.recipe_at(folder)))


def report_attacks(plan: AttackPlan, console: Console) -> None:
    """A page for each attacked model; tables, page and data of all. Raises UsageError for none."""
    subjects, folder = plan.subjects(), plan.folder
    found = {each.name: read_results(each.request.out) for each in subjects}
    results: Results = {name: own for name, own in found.items() if own}
    if not results:
        raise UsageError(f"report: nothing is attacked in {folder} yet; run it first")
    for each in subjects:
        if each.name in results:
            page = make_report(each.name, results[each.name])
            write_text(each.request.out / "report.html", render(page))
    pairs = [pair for pair in plan.pairs() if all(name in results for name in pair)]
    tables = [*overview(results), defence(results, pairs)]
    page = Page("Attacks", [READING], [Section("All", tables=tables)])
    write_text(folder / "report.html", render(page))
    write_text(folder / "attacks.md", "\n".join(map(captioned, tables)))
    models: dict[str, Any] = {
        name: {attack: each.as_json() for attack, each in own.items()}
        for name, own in results.items()
    }
    write_json(
        folder / "results.json", {"schema_version": 1, "models": models, "versions": versions()}
    )
    console.print(
        f"Written in {folder}: report.html, attacks.md, results.json, and a page for each model",
        highlight=False,
    )
