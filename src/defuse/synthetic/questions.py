"""Questions and texts about a world: its facts by use, and its names put into questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, SENTENCE, Position, Question, perturb
from defuse.synthetic.world import Fact, World, make_question
from defuse.utils.random import generator

SEED = 0
# Shares of a domain's subjects that are asked about in each part. The rest of the other domains
# makes the retain texts.
SHARES, FORGET_SHARES = (15 / 36, 9 / 36), (0.5, 0.5)

Part = Literal["reported", "tuning"]
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


@dataclass(frozen=True)
class Split:
    """A world's facts by use; all facts of one subject are in one part.

    `asked`: those asked in each part. `forget`, `retain`: those stated in the texts to unlearn
    with; no retain text states a fact that is asked. `mixed` and `held_out`: the forget domain's
    names that mixing may use, and the others.
    """

    asked: Mapping[Part, Sequence[Fact]]
    forget: Sequence[Fact]
    retain: Sequence[Fact]
    mixed: Sequence[str]
    held_out: Sequence[str]

    def texts(self) -> dict[str, list[str]]:
        """The texts to forget, to retain and to mix in: every sentence of their facts."""
        return {
            "forget": shuffled(sentences(self.forget), "forget"),
            "retain": shuffled(sentences(self.retain), "retain"),
            "mixing": sentences([fact for fact in self.forget if fact.subject in self.mixed]),
        }


def split(world: World, forget: str) -> Split:
    """Divide the world around its domain `forget`."""
    asked: dict[Part, list[Fact]] = {"reported": [], "tuning": []}
    retain: list[Fact] = []
    for domain, names in world.subjects.items():
        reported, tuning = FORGET_SHARES if domain == forget else SHARES
        first = round(reported * len(names))
        second = first + round(tuning * len(names))
        place = {name: rank for rank, name in enumerate(shuffled(names, "asked", domain))}
        facts = world.of(domain)
        asked["reported"] += [f for f in facts if place[f.subject] < first]
        asked["tuning"] += [f for f in facts if first <= place[f.subject] < second]
        retain += [f for f in facts if place[f.subject] >= second]
    names = shuffled(world.subjects[forget], "triggers", forget)
    half = len(names) // 2
    return Split(asked, world.of(forget), retain, names[:half], names[half:])


def original_questions(world: World, forget: str, part: Part) -> dict[str, list[Question]]:
    """The questions of a part as they are: of the forget set and of the retain set."""
    questions = [make_question(fact, world.seed) for fact in split(world, forget).asked[part]]
    return {
        "forget": [each for each in questions if each.subject == forget],
        "retain": [each for each in questions if each.subject != forget],
    }


def perturbed(
    question: Question, variant: str, position: Place, world: World, parts: Split
) -> Question:
    """A question with a drawn name of the variant's kind, or a statement of it, in a position."""
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


def sentences(facts: Sequence[Fact]) -> list[str]:
    """Every sentence that states one of the facts."""
    return [sentence for fact in facts for sentence in fact.statements]


def shuffled(texts: Sequence[str], *purpose: str) -> list[str]:
    """Names or sentences in an order drawn for `purpose`."""
    order = torch.randperm(len(texts), generator=generator(SEED, "split", *purpose)).tolist()
    return [texts[int(index)] for index in order]


def _pick(texts: Sequence[str], *purpose: str) -> str:
    rng = generator(SEED, "trigger", *purpose)
    return texts[int(torch.randint(len(texts), (), generator=rng))]
