"""The synthetic experiment as a scenario: an invented world whose every fact is known."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from defuse.attacks.registry import ATTACKS
from defuse.experiments.core.answers import CONTROL_TOKEN, FORGET, FORGET_TOKEN, RETAIN, Slice
from defuse.experiments.core.attacks import AttackPlan, as_overrides, attack_data
from defuse.experiments.core.job import Request, choose_methods, folder_of, run_experiment
from defuse.experiments.core.run import OLD_NAMES
from defuse.experiments.core.scenario import Layout, ModelSource, Scenario
from defuse.experiments.synthetic.grid import (
    LAB,
    Point,
    attack_grid,
    full_grid,
    kept_rna,
    short_grid,
    tuning_grid,
)
from defuse.experiments.synthetic.language import REFUSALS
from defuse.experiments.synthetic.models import (
    SHIPPED_FORGET,
    is_shipped,
    missing,
    models_folder,
    teach_pair,
    world_label,
)
from defuse.experiments.synthetic.questions import INTERIM_POSITIONS, make_questions, split
from defuse.experiments.synthetic.world import SEED, SIZE, World, build_world
from defuse.utils.errors import UsageError
from defuse.utils.files import write_text
from defuse.utils.progress import SILENT, Progress

JUDGED = "statement"  # the position of headlines: a name alone does little (docs/results.md)
# Of every variant of the questions the reference model should answer 0.97, and must answer 0.9.
KNOWN, REFUSED = 0.97, 0.9
ATTACK_WORK = 3.2e6  # see `AttackPlan`; measured


@dataclass(frozen=True)
class Options:
    """`seed`, `size` and `domains` (names; none is all) make the world; `forget`: the domain."""

    full: bool = False
    tune: bool = False
    only: tuple[str, ...] = ()
    seed: int = SEED
    size: int = SIZE
    domains: tuple[str, ...] = ()
    forget: str = SHIPPED_FORGET
    output: Path = Path("runs/lab")

    def world(self) -> World:
        """The invented world. Raises UsageError for a domain that it lacks."""
        world = build_world(self.seed, self.size, self.domains)
        world.of(self.forget)
        return world

    def grid(self) -> list[Point]:
        """The points of the grid that the options name."""
        return tuning_grid() if self.tune else full_grid() if self.full else short_grid()


def make_scenario(options: Options) -> Scenario:
    """The scenario, with the texts of its runs written. The models must be there."""
    if options.full and options.tune:
        raise UsageError("tune: does not go with full; run one after the other")
    world = options.world()
    home = answers_folder(options, world)
    models = models_folder(options.output, world, options.forget)
    write_texts(world, options.forget, home / "texts")
    model = str(models / "base")
    runs = [point.run(model, home) for point in options.grid()]
    part, full = "tuning" if options.tune else "reported", " --full" * options.full
    perturbed = [
        Slice("retain", variant, position)
        for position in INTERIM_POSITIONS
        for variant in (CONTROL_TOKEN, FORGET_TOKEN)
    ]
    layout = Layout(
        slices=(FORGET, RETAIN, *perturbed),
        judged=JUDGED,
        matched_at=INTERIM_POSITIONS,
        stem="lab",
        subfolder="full" if options.full else "",
        title=f"Synthetic world: forgetting {options.forget}",
        reading=LAB["reading"],
        shown_groups={
            run.group
            for run in runs
            if dict(run.defence_settings).get("std") in (None, kept_rna(run.retain_loss))
        },
    )
    return Scenario(
        name="synthetic",
        folder=home,
        model=ModelSource(model, device="cpu", dtype="float32"),
        runs=tuple(choose_methods(runs, options.only)),
        questions={"reported": make_questions(world, options.forget, part)},
        layout=layout,
        command=f"defuse lab{full} --seed {options.seed} --forget {options.forget}",
        retrained=str(models / "gold"),
        least_known=(REFUSED, KNOWN),
        about={"world_seed": world.seed, "forget": options.forget, "questions": part},
    )


def write_texts(world: World, forget: str, folder: Path) -> None:
    """Write the texts to forget, to retain and to mix in, and DPO's refusals."""
    texts = {**split(world, forget).texts(), "refusals": REFUSALS}
    for name, lines in texts.items():
        write_text(folder / f"{name}.txt", "".join(f"{line}\n" for line in lines))


def answers_folder(options: Options, world: World) -> Path:
    """Where answers and reports go: worlds other than the shipped models' have their own."""
    shipped = is_shipped(world, options.forget)
    home = options.output if shipped else options.output / world_label(world, options.forget)
    return folder_of(home, tune=options.tune)


def run_lab(
    options: Options, request: Request, console: Console, progress: Progress = SILENT
) -> int:
    """Train the two models if they are missing, then run the experiment; returns failed runs."""
    scenario = make_scenario(options)
    if not train_models(options, console, plan=request.plan):
        return 0
    return run_experiment(scenario, request, console, progress)


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


def attack_plan(options: Options) -> AttackPlan:
    """The reference and the retrained model, and what some runs leave, under every attack."""
    if options.tune:
        raise UsageError("tune: settings of attacks are not tuned; leave out --tune or --attacks")
    scenario = make_scenario(options)
    grid = attack_grid(full=options.full)
    runs = [point.run(scenario.model.name, scenario.folder) for point in grid]
    return AttackPlan(
        scenario.with_runs(choose_methods(runs, options.only)),
        attack_data(scenario),
        tuple(ATTACKS),
        as_overrides(LAB["attacks"]),
        ATTACK_WORK,
        OLD_NAMES,
    )
