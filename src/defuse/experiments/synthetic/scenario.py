"""The synthetic experiment as a scenario: an invented world whose every fact is known."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from defuse.attacks.registry import ATTACKS
from defuse.experiments.core.attacks import AttackPlan, attack_data
from defuse.experiments.core.job import choose_methods, folder_of
from defuse.experiments.core.scenario import Layout, ModelSource, Scenario
from defuse.experiments.synthetic.grid import (
    LAB,
    attack_grid,
    full_grid,
    kept_rna,
    short_grid,
    tuning_grid,
)
from defuse.experiments.synthetic.questions import INTERIM, INTERIM_POSITIONS, make_questions
from defuse.synthetic.language import REFUSALS
from defuse.synthetic.models import (
    NAMES,
    SHIPPED_FORGET,
    SHIPPED_LABEL,
    missing,
    models_folder,
    teach_pair,
    world_label,
)
from defuse.synthetic.questions import split
from defuse.synthetic.world import SEED, SIZE, World, build_world
from defuse.utils.config import Count, check_fields
from defuse.utils.errors import UsageError
from defuse.utils.files import write_text

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
    size: Count = SIZE
    domains: tuple[str, ...] = ()
    forget: str = SHIPPED_FORGET
    output: Path = Path("runs/lab")

    def __post_init__(self) -> None:
        check_fields(self)

    @cached_property
    def world(self) -> World:
        """The invented world. Raises UsageError for a domain that it lacks."""
        world = build_world(self.seed, self.size, self.domains)
        world.of(self.forget)
        return world

    @property
    def label(self) -> str:
        """The name of the world's folders."""
        return world_label(self.world, self.forget)

    @property
    def folder(self) -> Path:
        """Where answers and reports are: other worlds than the shipped one have a folder each."""
        own = self.output if self.label == SHIPPED_LABEL else self.output / self.label
        return folder_of(own, tune=self.tune)

    @property
    def models(self) -> Path:
        """Where the reference and the retrained model are."""
        return models_folder(self.output, self.label)


def make_scenario(options: Options) -> Scenario:
    """The scenario, with the texts of its runs and DPO's refusals written.

    The models must be there when it runs.
    """
    if options.full and options.tune:
        raise UsageError("tune: does not go with full; run one after the other")
    home, model = options.folder, str(options.models / "base")
    grid = tuning_grid() if options.tune else full_grid() if options.full else short_grid()
    runs = [point.run(model, home) for point in grid]
    texts = {**split(options.world, options.forget).texts(), "refusals": REFUSALS}
    for name, lines in texts.items():
        write_text(home / "texts" / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    part, full = "tuning" if options.tune else "reported", " --full" * options.full
    layout = Layout(
        slices=INTERIM,
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
        questions={"reported": make_questions(options.world, options.forget, part)},
        layout=layout,
        command=f"defuse lab{full} --seed {options.seed} --forget {options.forget}",
        retrained=str(options.models / "gold"),
        least_known=(REFUSED, KNOWN),
        headlines=_headlines(options),
        about={"world_seed": options.seed, "forget": options.forget, "questions": part},
    )


def _headlines(options: Options) -> Path | None:
    """The published conclusions, which are about the shipped world's reported questions."""
    if options.tune or options.label != SHIPPED_LABEL:
        return None
    return Path(__file__).with_name("headlines-full.json" if options.full else "headlines.json")


def train_models(options: Options, console: Console, *, plan: bool) -> bool:
    """Train the reference and the retrained model unless they are there; False if only planned."""
    if lacking := missing(options.models):
        said = " and the ".join(NAMES[name] for name in lacking)
        console.print(f"Training the {said} model first: about 10 minutes.")
        if plan:
            return False
        teach_pair(options.world, options.forget, options.models)
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
        LAB["attacks"],
        ATTACK_WORK,
    )
