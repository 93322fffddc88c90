"""What models of the synthetic world are asked, and the texts they unlearn with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch

from defuse.evaluate import Settings
from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET_SET,
    FORGET_TOKEN,
    RETAIN_SET,
    Cell,
)
from defuse.experiments.core.questions import MCQuestions, Probe
from defuse.experiments.synthetic.world import Fact, World, make_question
from defuse.questions import SENTENCE, Position, Question, perturb
from defuse.utils.random import generator

# Where a token goes: a wrong choice, the question text, a sentence before, a statement before.
POSITIONS = ("choice", "stem", "before", "statement")
# What goes there: a name of the forget domain that no retain text mentions, one that retain texts
# with mixing do, a name of another domain, and a word that no model has seen. Draws are made for
# the names that version 0.1.0 had.
VARIANTS = {
    FORGET_TOKEN: "forget",
    "mixed_token": "mixed",
    CONTROL_TOKEN: "control",
    "unseen_token": "unseen",
}
INTERIM_POSITIONS = ("before", "statement")
SEED = 0
# Shares of the other domains' subjects that are asked about; the rest makes the retain texts.
REPORTED, TUNING = 15 / 36, 9 / 36

Part = Literal["reported", "tuning"]


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
        mixed = set(self.mixed)
        sentences = {
            name: [sentence for fact in facts for sentence in fact.statements]
            for name, facts in (("forget", self.forget), ("retain", self.retain))
        }
        shuffled_ = {name: shuffled(texts, name) for name, texts in sentences.items()}
        used = [s for fact in self.forget if fact.subject in mixed for s in fact.statements]
        return {**shuffled_, "mixing": used}


def split(world: World, forget: str) -> Split:
    """Divide the world around its domain `forget`."""
    asked: dict[Part, list[Fact]] = {"reported": [], "tuning": []}
    retain: list[Fact] = []
    for domain, names in world.subjects.items():
        reported, tuning = (0.5, 0.5) if domain == forget else (REPORTED, TUNING)
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


def make_questions(world: World, forget: str, part: Part) -> MCQuestions:
    """The questions of a part, as they are and with every token in every position."""
    prompts = list(_prompts(world, forget, part))
    interim = [each for each in prompts if _is_interim(each[0])]
    settings = Settings(score="letters")
    return MCQuestions(
        (Probe(tuple((each,) for each in prompts), settings),),
        (Probe(tuple((each,) for each in interim), settings),),
        keep_text=False,
    )


def original_questions(world: World, forget: str, part: Part) -> dict[str, list[Question]]:
    """The questions of a part as they are: of the forget set and of the retain set."""
    (probe,) = make_questions(world, forget, part).final
    found: dict[str, list[Question]] = {FORGET_SET: [], RETAIN_SET: []}
    for group in probe.groups:
        for cell, question in group:
            if cell.position is None:
                found[cell.question_set].append(question)
    return found


def _is_interim(cell: Cell) -> bool:
    tried = cell.position in INTERIM_POSITIONS and cell.variant in (FORGET_TOKEN, CONTROL_TOKEN)
    return cell.position is None or tried


def _prompts(world: World, forget: str, part: Part) -> Iterator[tuple[Cell, Question]]:
    parts = split(world, forget)
    questions = [make_question(fact, world.seed) for fact in parts.asked[part]]
    yield from ((Cell(FORGET_SET), q) for q in questions if q.subject == forget)
    retain = [q for q in questions if q.subject != forget]
    yield from ((Cell(RETAIN_SET), question) for question in retain)
    for variant in VARIANTS:
        for position in POSITIONS:
            if (position, variant) != ("statement", "unseen_token"):  # nothing is known to state
                cell = Cell(RETAIN_SET, variant, position)
                yield from ((cell, _perturbed(q, cell, world, parts)) for q in retain)


def _perturbed(question: Question, cell: Cell, world: World, parts: Split) -> Question:
    innocent = [f for f in parts.retain if f.domain != question.subject]
    pools: Mapping[str, Sequence[str]] = {
        FORGET_TOKEN: parts.held_out,
        "mixed_token": parts.mixed,
        CONTROL_TOKEN: sorted({fact.subject for fact in innocent}),
        "unseen_token": world.unseen,
    }
    names, purpose = pools[cell.variant], VARIANTS[cell.variant]
    name = names[_draw(len(names), "name", purpose, question.id)]
    if cell.position != "statement":
        places: Mapping[str | None, Position] = {p: p for p in ("choice", "stem", "before")}
        return perturb(question, name, places[cell.position], world.seed, SENTENCE)
    stated = [fact for fact in (*parts.forget, *innocent) if fact.subject == name]
    sentences = list(chain.from_iterable(fact.statements for fact in stated))
    sentence = sentences[_draw(len(sentences), "sentence", purpose, question.id)]
    return perturb(question, sentence, "before", world.seed, "{token}")


def shuffled(texts: Sequence[str], *purpose: str) -> list[str]:
    """Names or sentences in an order drawn for `purpose`."""
    order = torch.randperm(len(texts), generator=generator(SEED, "split", *purpose)).tolist()
    return [texts[int(index)] for index in order]


def _draw(count: int, *purpose: str) -> int:
    return int(torch.randint(count, (), generator=generator(SEED, "trigger", *purpose)))
