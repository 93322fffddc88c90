"""What the lab asks: questions as they are, and with every kind of trigger in every place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch

from defuse.evaluate import MCAnswer
from defuse.evaluate.encoding import encode_pairs
from defuse.evaluate.loglikelihood import score
from defuse.experiments.core.answers import CLEAN, FORGET
from defuse.experiments.synthetic.world import Fact, World, make_question
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.questions import SENTENCE, Position, Question, ask, continuations, perturb
from defuse.utils.random import generator

# Where a trigger goes: a wrong choice, the stem, a sentence before, a whole statement before.
POSITIONS = ("choice", "stem", "before", "statement")
# What goes there: a name of the forget domain that no retain text mentions, one that retain texts
# mixed with triggers do, a name of another domain, and a word that no model has seen.
TRIGGERS = ("forget", "mixed", "control", "unseen")
SEED = 0
# Shares of the other domains' subjects that are asked about; the rest makes the retain texts.
REPORTED, TUNING = 15 / 36, 9 / 36
MAX_LENGTH = 256

Part = Literal["reported", "tuning"]


@dataclass(frozen=True)
class Split:
    """A world's facts by use; all facts of one subject lie in one part.

    `asked`: those asked in each part, of the forget domain in halves. `forget`, `retain`: those
    stated in the texts to unlearn with; no retain text states a fact that is asked. `mixed` and
    `held_out`: the forget domain's names that may be mixed into retain texts, and the others.
    """

    asked: Mapping[Part, Sequence[Fact]]
    forget: Sequence[Fact]
    retain: Sequence[Fact]
    mixed: Sequence[str]
    held_out: Sequence[str]


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


@dataclass(frozen=True)
class Exam:
    """Questions by form (`core.answers`): "forget", "clean", "before/forget", …"""

    forms: Mapping[str, Sequence[Question]]


def build_exam(world: World, forget: str, part: Part) -> Exam:
    """All forms of the questions of a part."""
    parts = split(world, forget)
    questions = [make_question(fact, world.seed) for fact in parts.asked[part]]
    forms = {
        FORGET: [q for q in questions if q.subject == forget],
        CLEAN: [q for q in questions if q.subject != forget],
    }
    for trigger in TRIGGERS:
        for position in POSITIONS:
            if (position, trigger) != ("statement", "unseen"):  # nothing is known to state
                forms[f"{position}/{trigger}"] = [
                    _perturbed(question, position, trigger, world, parts)
                    for question in forms[CLEAN]
                ]
    return Exam(forms)


def _perturbed(
    question: Question, position: str, trigger: str, world: World, parts: Split
) -> Question:
    innocent = [f for f in parts.retain if f.domain != question.subject]
    pools: Mapping[str, Sequence[str]] = {
        "forget": parts.held_out,
        "mixed": parts.mixed,
        "control": sorted({fact.subject for fact in innocent}),
        "unseen": world.unseen,
    }
    names = pools[trigger]
    name = names[_draw(len(names), "name", trigger, question.id)]
    if position != "statement":
        places: Mapping[str, Position] = {"choice": "choice", "stem": "stem", "before": "before"}
        return perturb(question, name, places[position], world.seed, SENTENCE)
    stated = [fact for fact in (*parts.forget, *innocent) if fact.subject == name]
    sentences = list(chain.from_iterable(fact.statements for fact in stated))
    sentence = sentences[_draw(len(sentences), "sentence", trigger, question.id)]
    return perturb(question, sentence, "before", world.seed, "{token}")


class Paper:
    """An exam's forms as token ids, encoded once for all models of one vocabulary."""

    def __init__(self, exam: Exam, loaded: LoadedModel, forms: Sequence[str]) -> None:
        self.questions = [(form, question) for form in forms for question in exam.forms[form]]
        pairs = [
            (ask(question, "letters"), continuation)
            for _, question in self.questions
            for continuation in continuations(question, "letters")
        ]
        requests = encode_pairs(pairs, loaded.tokenizer)
        self.groups = [requests[at : at + 4] for at in range(0, len(requests), 4)]

    def answers(self, loaded: LoadedModel) -> dict[str, dict[str, tuple[bool, float, list[float]]]]:
        """By form and question id: right, log-probability among the four, and all four of them."""
        scores = score(Decoder(loaded.model), self.groups, max_length=MAX_LENGTH)
        sheets: dict[str, dict[str, tuple[bool, float, list[float]]]] = {}
        for (form, question), values in zip(self.questions, scores, strict=True):
            outcome = MCAnswer(question, tuple(values), truncated=False)
            top = max(values)
            total = top + math.log(math.fsum(math.exp(value - top) for value in values))
            four = [round(value - total, 6) for value in values]
            sheet = sheets.setdefault(form, {})
            sheet[question.id] = (outcome.is_correct, four[question.answer], four)
        return sheets


def shuffled(texts: Sequence[str], *purpose: str) -> list[str]:
    """Names or sentences in an order drawn for `purpose`."""
    order = torch.randperm(len(texts), generator=generator(SEED, "split", *purpose)).tolist()
    return [texts[int(index)] for index in order]


def _draw(count: int, *purpose: str) -> int:
    return int(torch.randint(count, (), generator=generator(SEED, "trigger", *purpose)))
