"""The elements experiment's models under attack."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from defuse.attacks.data import AttackData
from defuse.attacks.registry import ATTACKS
from defuse.experiments.core.attacks import AttackPlan
from defuse.experiments.core.job import choose_methods
from defuse.experiments.elements.facts import ELEMENTS
from defuse.experiments.elements.grid import attack_grid
from defuse.experiments.elements.questions import build_material
from defuse.experiments.elements.scenario import SETTINGS, Options, make_scenario
from defuse.questions import Question
from defuse.utils.errors import UsageError

# Questions about the elements and about all retained domains, in turn from each domain.
ASKED = (40, 60)
# As far as a processor allows; the rest are defaults.
ATTACK_SETTINGS = (
    *("orthogonalise.ways=[all,strongest,weights]", "orthogonalise.texts=64"),
    *("prune.score=signed", "prune.texts=64"),
    *("gcg.length=5", "gcg.init=''", "gcg.steps=6", "gcg.search_width=32", "gcg.questions=6"),
    *("triggers.top=10", "triggers.shown=5", "triggers.mined=20", "triggers.questions=40"),
    *("relearn.texts=[0,10,100]", "relearn.steps=32", "relearn.checkpoints=2"),
    *("relearn.batch_size=4", "relearn.lora=16", "relearn.learning_rate=1e-3"),
)
ATTACK_WORK = 5.0e5  # see `AttackPlan`; measured


def attack_plan(options: Options) -> AttackPlan:
    """The model as it is, and what some runs leave, under every attack."""
    if options.tune:
        raise UsageError("tune: settings of attacks are not tuned; leave out --tune or --attacks")
    scenario, material = make_scenario(options), build_material()
    runs = [p.run(scenario.model.name, scenario.folder) for p in attack_grid(full=options.full)]
    data = AttackData(
        *attacked_questions(material.reported),
        SETTINGS,
        tuple(material.forget),
        tuple(material.retain),
    )
    return AttackPlan(
        scenario.with_runs(choose_methods(runs, options.only)),
        data,
        tuple(ATTACKS),
        ATTACK_SETTINGS,
        ATTACK_WORK,
    )


def attacked_questions(
    domains: Mapping[str, Sequence[Question]],
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """The first questions about the elements, and about the other domains in turn."""
    retain = [questions for name, questions in domains.items() if name != ELEMENTS]
    in_turn = [q for row in zip_longest(*retain) for q in row if q is not None]
    return tuple(domains[ELEMENTS][: ASKED[0]]), tuple(in_turn[: ASKED[1]])
