"""What models of the synthetic world are asked, with every token in every position."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal

import torch

from defuse.evaluate import Settings
from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET_TOKEN,
    RETAIN_SET,
    Cell,
    slices_at,
)
from defuse.experiments.core.questions import MCQuestions, Probe, Prompt
from defuse.questions import SENTENCE, Position, Question, perturb
from defuse.synthetic.questions import SEED, Part, Split, original_questions, sentences, split
from defuse.synthetic.world import World
from defuse.utils.random import generator

# Where a token goes: a wrong choice, the question text, a sentence before, a statement before.
Place = Position | Literal["statement"]
POSITIONS: tuple[Place, ...] = ("choice", "stem", "before", "statement")
# What goes there: a name of the forget domain that no retain text mentions, one that retain texts
# with mixing do, a name of another domain, and a word that no model has seen. Draws are made for
# the names that version 0.1.0 had.
VARIANTS = {
    FORGET_TOKEN: "forget",
    "mixed_token": "mixed",
    CONTROL_TOKEN: "control",
    "unseen_token": "unseen",
}
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
                (cell, _perturbed(question, variant, position, world, parts))
                for question in sets[RETAIN_SET]
            ]
    interim = [prompt for prompt in prompts if prompt[0] in INTERIM]
    return MCQuestions((_probe(prompts),), (_probe(interim),), keep_text=False)


def _probe(prompts: Sequence[Prompt]) -> Probe:
    return Probe(tuple((prompt,) for prompt in prompts), Settings(score="letters"))


def _perturbed(
    question: Question, variant: str, position: Place, world: World, parts: Split
) -> Question:
    others = [fact for fact in parts.retain if fact.domain != question.subject]
    pools: Mapping[str, Sequence[str]] = {
        FORGET_TOKEN: parts.held_out,
        "mixed_token": parts.mixed,
        CONTROL_TOKEN: sorted({fact.subject for fact in others}),
        "unseen_token": world.unseen,
    }
    purpose = VARIANTS[variant]
    name = _pick(pools[variant], "name", purpose, question.id)
    if position != "statement":
        return perturb(question, name, position, world.seed, SENTENCE)
    stated = sentences([fact for fact in (*parts.forget, *others) if fact.subject == name])
    sentence = _pick(stated, "sentence", purpose, question.id)
    return perturb(question, sentence, "before", world.seed, "{token}")


def _pick(texts: Sequence[str], *purpose: str) -> str:
    rng = generator(SEED, "trigger", *purpose)
    return texts[int(torch.randint(len(texts), (), generator=rng))]
