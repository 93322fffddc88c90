"""`defuse lab --attacks`: base, gold standard and unlearned models under every attack."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from defuse.attacks.data import AttackData
from defuse.attacks.registry import ATTACKS, make_configs
from defuse.attacks.run import Request
from defuse.experiments.core.answers import CLEAN, FORGET
from defuse.experiments.core.attacks import Campaign, Subject
from defuse.experiments.synthetic.experiment import Bench
from defuse.experiments.synthetic.grid import NOISE_STD, SETTINGS, SHORT_PAIRS, SHORT_SEEDS, Run
from defuse.experiments.synthetic.models import NAMES
from defuse.experiments.synthetic.workers import Place
from defuse.models.save import save_model
from defuse.unlearning.train import unlearn

# What lets every attack end within minutes on a tiny model; all else is each attack's own default.
LAB_SETTINGS = (
    "prune.score=signed",
    # A tiny model knows one form of prompt: more random tokens, or a further line, break answers.
    *("gcg.place=question", "gcg.length=1", "gcg.init=''"),
    *("gcg.steps=5", "gcg.search_width=256", "gcg.questions=20"),
    *("triggers.top=20", "triggers.shown=5", "triggers.mined=40", "triggers.questions=60"),
    *("relearn.texts=[0,10,100,1000]", "relearn.steps=64", "relearn.checkpoints=4"),
    *("relearn.batch_size=4", "relearn.learning_rate=5e-4", "relearn.lora=null"),
)
WORK = 3.2e6  # see `Campaign`; measured


def attack_grid(*, full: bool, only: Sequence[str] = ()) -> list[Run]:
    """RMU and SimNPO without and with RNA; `full`: all methods and retain losses, more seeds."""
    pairs = list(SETTINGS) if full else SHORT_PAIRS
    return [
        Run(*pair, seed, noise)
        for seed in range(SHORT_SEEDS if full else 1)
        for pair in pairs
        for noise in (None, NOISE_STD[pair[1]])
        if not only or pair[0] in only
    ]


def make_campaign(runs: Sequence[Run], place: Place) -> Campaign:
    """The pair of taught models, and what each run leaves, under every attack."""
    bench, folder = place.bench(), place.folder / "attacks"
    data = _data(bench)

    def request(name: str, model: Path) -> Request:
        base, gold = (str(place.models / each) for each in NAMES)
        chosen = make_configs(list(ATTACKS), LAB_SETTINGS)
        return Request(str(model), folder / name, chosen, data, base, gold, "cpu", "float32")

    subjects = [Subject(name, request(name, place.models / name)) for name in NAMES]
    for run in runs:
        model = folder / "models" / run.name
        make = partial(_unlearn, run, place, model)
        subjects.append(Subject(run.name, request(run.name, model), make))
    pairs = [(plain.name, run.name) for run in runs for plain in runs if _twins(plain, run)]
    return Campaign(subjects, pairs, folder, WORK)


def _data(bench: Bench) -> AttackData:
    forms, texts = bench.exam.forms, bench.texts
    return AttackData(
        tuple(forms[FORGET]),
        tuple(forms[CLEAN]),
        forget_texts=tuple(texts["forget"]),
        retain_texts=tuple(texts["retain"]),
    )


def _unlearn(run: Run, place: Place, folder: Path) -> None:
    bench = place.bench()
    base, texts = bench.base, bench.texts
    topic = run.topic(texts["forget"], texts["retain"], bench.triggers)
    result = unlearn(base.model, base.tokenizer, [topic], run.unlearning(), run.training())
    save_model(result.model, base.tokenizer, folder)


def _twins(plain: Run, defended: Run) -> bool:
    """Whether the second is the first with noise."""
    same = (plain.method, plain.retain, plain.seed)
    noised = plain.noise is None and defended.noise is not None
    return noised and same == (defended.method, defended.retain, defended.seed)
