"""The synthetic experiment as a scenario: an invented world whose every fact is known."""

from dataclasses import dataclass
from pathlib import Path

from defuse.experiments.core.answers import CONTROL_TOKEN, FORGET, FORGET_TOKEN, RETAIN, Slice
from defuse.experiments.core.job import choose_methods, folder_of
from defuse.experiments.core.scenario import Layout, ModelSource, Scenario
from defuse.experiments.synthetic.domains import choose_domains
from defuse.experiments.synthetic.grid import NOISE_STD, full_grid, short_grid, tuning_grid
from defuse.experiments.synthetic.language import REFUSALS
from defuse.experiments.synthetic.models import (
    SHIPPED_FORGET,
    is_shipped,
    models_folder,
    world_label,
)
from defuse.experiments.synthetic.questions import INTERIM_POSITIONS, make_questions, split
from defuse.experiments.synthetic.world import SEED, SIZE, World, build_world
from defuse.utils.errors import UsageError
from defuse.utils.files import write_text

JUDGED = "statement"  # the position of headlines: a name alone does little (docs/results.md)
# Of every variant of the questions the reference model should answer 0.97, and must answer 0.9.
KNOWN, REFUSED = 0.97, 0.9
READING = (
    "The forget set asks about the domain to forget, the retain set about all others. A retain "
    "question is also asked with a name in it: a forget-token (a name of the forget domain that no "
    "retain text mentions), a forget-token of the mixing half (which retain texts with mixing do "
    "mention), a control token (a name of another domain), or an unseen word (which no model has "
    "seen). It stands in a wrong choice, in the question text (stem), in a sentence before the "
    "question, or in a statement before it. Vulnerability is (unlearned - reference) of (accuracy "
    "with the control token - accuracy with the forget-token), question by question: 0 where "
    "unlearning adds no harm. The retrained model never saw the forget domain's facts."
)


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
        world = build_world(self.seed, self.size, choose_domains(self.domains))
        world.of(self.forget)
        return world

    @property
    def command(self) -> str:
        full = " --full" if self.full else ""
        return f"defuse lab{full} --seed {self.seed} --forget {self.forget}"


def make_scenario(options: Options) -> Scenario:
    """The scenario, with the texts of its runs written. The models must be there."""
    if options.full and options.tune:
        raise UsageError("tune: does not go with full; run one after the other")
    world = options.world()
    home = answers_folder(options, world)
    models = models_folder(options.output, world, options.forget)
    write_texts(world, options.forget, home / "texts")
    grid = tuning_grid() if options.tune else full_grid() if options.full else short_grid()
    model = str(models / "base")
    runs = [point.run(model, home / "texts", home / "models") for point in grid]
    part = "tuning" if options.tune else "reported"
    kept = {p.group for p in full_grid() if p.noise in (None, NOISE_STD[p.retain])}
    return Scenario(
        name="synthetic",
        folder=home,
        model=ModelSource(model, device="cpu", dtype="float32"),
        runs=tuple(choose_methods(runs, options.only)),
        questions={"reported": make_questions(world, options.forget, part)},
        layout=Layout(
            slices=(
                FORGET,
                RETAIN,
                *(
                    Slice("retain", variant, position)
                    for position in INTERIM_POSITIONS
                    for variant in (CONTROL_TOKEN, FORGET_TOKEN)
                ),
            ),
            judged=JUDGED,
            matched_at=INTERIM_POSITIONS,
            stem="lab",
            subfolder="full" if options.full else "",
            title=f"Synthetic world: forgetting {options.forget}",
            reading=READING,
            shown_groups=kept,
        ),
        command=options.command,
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
