"""`defuse real --attacks`: a real model, unlearned without and with RNA, under attack."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from defuse.attacks.data import AttackData
from defuse.attacks.registry import ATTACKS, make_configs
from defuse.attacks.run import Request
from defuse.experiments.core.attacks import Campaign, Subject
from defuse.experiments.elements.experiment import SETTINGS, Bench
from defuse.experiments.elements.facts import ELEMENTS
from defuse.experiments.elements.grid import COMPARED, MAIN, SHORT_SEEDS, Run
from defuse.experiments.elements.questions import Material as Texts
from defuse.questions import Question
from defuse.unlearning import run as unlearning

BASE = "base"
# Questions about the elements and about all that was kept, in turn from each domain.
ASKED = (40, 60)
# As far as a processor allows; all else is each attack's own default.
REAL_SETTINGS = (
    *("orthogonalise.ways=[all,strongest,weights]", "orthogonalise.texts=64"),
    *("prune.score=signed", "prune.texts=64"),
    *("gcg.length=5", "gcg.init=''", "gcg.steps=6", "gcg.search_width=32", "gcg.questions=6"),
    *("triggers.top=10", "triggers.shown=5", "triggers.mined=20", "triggers.questions=40"),
    *("relearn.texts=[0,10,100]", "relearn.steps=32", "relearn.checkpoints=2"),
    *("relearn.batch_size=4", "relearn.lora=16", "relearn.learning_rate=1e-3"),
)
WORK = 5.0e5  # see `Campaign`; measured


def attack_grid(*, full: bool, only: Sequence[str] = ()) -> list[Run]:
    """RMU without and with RNA; `full`: SimNPO, too, and two seeds."""
    pairs, seeds = (COMPARED, SHORT_SEEDS) if full else ((MAIN,), SHORT_SEEDS[:1])
    return [
        Run(*pair, rna, seed)
        for seed in seeds
        for pair in pairs
        for rna in (False, True)
        if not only or pair[0] in only
    ]


def make_campaign(runs: Sequence[Run], bench: Bench, texts: Texts) -> Campaign:
    """The model as it is, and what each run leaves, under the attacks."""
    folder, base = bench.folder / "attacks", bench.base.name
    data = AttackData(*_asked(bench), SETTINGS, tuple(texts.forget), tuple(texts.retain))

    def request(name: str, model: str) -> Request:
        chosen = make_configs(tuple(ATTACKS), REAL_SETTINGS)
        return Request(
            model, folder / name, chosen, data, reference=base, device="cpu", dtype="float32"
        )

    subjects = [Subject(BASE, request(BASE, base))]
    for run in runs:
        model = folder / "models" / run.name
        make = partial(_unlearn, run, bench.texts, base, model)
        subjects.append(Subject(run.name, request(run.name, str(model)), make))
    plain = [run for run in runs if not run.rna]
    pairs = [(run.name, Run(run.method, run.retain, True, run.seed).name) for run in plain]
    return Campaign(subjects, pairs, folder, WORK)


def _asked(bench: Bench) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    kept = [questions for name, questions in bench.questions.items() if name != ELEMENTS]
    in_turn = [q for row in zip_longest(*kept) for q in row if q is not None]
    return tuple(bench.questions[ELEMENTS][: ASKED[0]]), tuple(in_turn[: ASKED[1]])


def _unlearn(wanted: Run, texts: Path, model: str, folder: Path) -> None:
    recipe = replace(wanted.recipe(texts, model), output=str(folder))
    unlearning.run(unlearning.check(recipe))
