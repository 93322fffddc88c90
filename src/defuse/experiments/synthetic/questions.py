"""What models of the synthetic world are asked, with every token in every position."""

from collections.abc import Sequence
from itertools import product

from defuse.evaluate import Settings
from defuse.experiments.core.answers import RETAIN_SET, Cell, slices_at
from defuse.experiments.core.questions import MCQuestions, Probe, Prompt
from defuse.synthetic.questions import (
    POSITIONS,
    VARIANTS,
    Part,
    original_questions,
    perturbed,
    split,
)
from defuse.synthetic.world import World

# What is asked at checkpoints before the last; there is one retain set, so these are also cells.
INTERIM_POSITIONS = ("before", "statement")
INTERIM = slices_at(INTERIM_POSITIONS)


def make_questions(world: World, forget: str, part: Part) -> MCQuestions:
    """The questions of a part, as they are and with every token in every position."""
    parts, sets = split(world, forget), original_questions(world, forget, part)
    prompts = [(Cell(name), question) for name, own in sets.items() for question in own]
    for variant, position in product(VARIANTS, POSITIONS):
        if (variant, position) != ("unseen_token", "statement"):  # it has no facts to state
            cell = Cell(RETAIN_SET, variant, position)
            prompts += [
                (cell, perturbed(question, variant, position, world, parts))
                for question in sets[RETAIN_SET]
            ]
    interim = [prompt for prompt in prompts if prompt[0] in INTERIM]
    return MCQuestions((_probe(prompts),), (_probe(interim),), keep_text=False)


def _probe(prompts: Sequence[Prompt]) -> Probe:
    return Probe(tuple((prompt,) for prompt in prompts), Settings(score="letters"))
