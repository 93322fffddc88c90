"""`defuse lab`: the synthetic experiment, its tuning, and its models under attack."""

from pathlib import Path

from rich.console import Console

from defuse.attacks.data import AttackData
from defuse.attacks.registry import ATTACKS
from defuse.experiments.core.answers import FORGET_SET, RETAIN_SET
from defuse.experiments.core.attacks import AttackPlan
from defuse.experiments.core.job import Request, choose_methods, read_answers, run_experiment
from defuse.experiments.core.run import OLD_NAMES, ExperimentContext
from defuse.experiments.synthetic.grid import attack_grid
from defuse.experiments.synthetic.models import missing, models_folder, teach_pair
from defuse.experiments.synthetic.questions import original_questions, split
from defuse.experiments.synthetic.regimes import regimes
from defuse.experiments.synthetic.scenario import Options, make_scenario
from defuse.utils.errors import UsageError
from defuse.utils.files import write_text
from defuse.utils.progress import SILENT, Progress


def run_lab(
    options: Options, request: Request, console: Console, progress: Progress = SILENT
) -> int:
    """Train the two models if they are missing, then run the experiment; returns failed runs."""
    scenario = make_scenario(options)
    if not train_models(options, console, plan=request.plan):
        return 0
    failed = run_experiment(scenario, request, console, progress)
    if options.tune and not request.plan:
        answers = read_answers(ExperimentContext(scenario), progress)
        found = regimes(answers.finished, answers.reference)
        path = scenario.folder / "tuning.md"
        write_text(path, f"{path.read_text(encoding='utf-8')}\n{found}")
        console.print(found, highlight=False, markup=False, soft_wrap=True)
    return failed


def train_models(options: Options, console: Console, *, plan: bool) -> bool:
    """Train the reference and the retrained model unless they are there; False if only planned."""
    world = options.world()
    folder = models_folder(options.output, world, options.forget)
    if lacking := missing(folder):
        console.print(f"Training {' and '.join(lacking)} first: about 10 minutes.")
        if plan:
            return False
        teach_pair(world, options.forget, folder)
    return True


# Settings that let every attack end within minutes on a tiny model; the rest are defaults.
ATTACK_SETTINGS = (
    "prune.score=signed",
    # A tiny model knows one form of prompt: more random tokens, or a further line, break answers.
    *("gcg.place=question", "gcg.length=1", "gcg.init=''"),
    *("gcg.steps=5", "gcg.search_width=256", "gcg.questions=20"),
    *("triggers.top=20", "triggers.shown=5", "triggers.mined=40", "triggers.questions=60"),
    *("relearn.texts=[0,10,100,1000]", "relearn.steps=64", "relearn.checkpoints=4"),
    *("relearn.batch_size=4", "relearn.learning_rate=5e-4", "relearn.lora=null"),
)
ATTACK_WORK = 3.2e6  # see `AttackPlan`; measured


def attack_plan(options: Options) -> AttackPlan:
    """The reference and the retrained model, and what some runs leave, under every attack."""
    if options.tune:
        raise UsageError("tune: settings of attacks are not tuned; leave out --tune or --attacks")
    scenario, world = make_scenario(options), options.world()
    models = models_folder(options.output, world, options.forget)
    grid = attack_grid(full=options.full)
    runs = [p.run(str(models / "base"), scenario.folder / "texts", Path()) for p in grid]
    questions = original_questions(world, options.forget, "reported")
    texts = split(world, options.forget).texts()
    data = AttackData(
        tuple(questions[FORGET_SET]),
        tuple(questions[RETAIN_SET]),
        forget_texts=tuple(texts["forget"]),
        retain_texts=tuple(texts["retain"]),
    )
    return AttackPlan(
        scenario.with_runs(choose_methods(runs, options.only)),
        data,
        tuple(ATTACKS),
        ATTACK_SETTINGS,
        ATTACK_WORK,
        OLD_NAMES,
    )
