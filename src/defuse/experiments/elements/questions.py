"""Questions, texts and trigger terms of the main job, the same at every call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from defuse.experiments.elements.facts import ELEMENTS, RETAIN, Fact, read_facts
from defuse.questions import Question
from defuse.utils.random import generator

SEED = 0  # of the question set, which is one and the same for all runs
# Subjects reported and used for tuning; of the retain domains, the rest makes the retain texts.
SUBJECTS = {"elements": (60, 58), "capitals": (100, 40), "cities": (100, 60), "states": (100, 60)}
MAX_TEXT_SUBJECTS = 100


@dataclass(frozen=True)
class Material:
    """`reported` and `tuning`: questions by domain, about different subjects.

    `forget`: texts of all the forget domain's facts. `retain`: texts of the retain domains, about
    subjects that no question asks.
    """

    reported: Mapping[str, Sequence[Question]]
    tuning: Mapping[str, Sequence[Question]]
    forget: Sequence[str]
    retain: Sequence[str]


def build_material() -> Material:
    """Read the facts, split them by subject, and make questions and texts of them."""
    reported, tuning, spare = {}, {}, []
    facts = read_facts()
    for domain, known in facts.items():
        parts = split(domain, known, SUBJECTS[domain])
        reported[domain] = [make_question(domain, fact) for fact in parts[0]]
        tuning[domain] = [make_question(domain, fact) for fact in parts[1]]
        spare += parts[2][:MAX_TEXT_SUBJECTS] if domain in RETAIN else []
    return Material(reported, tuning, _texts(facts[ELEMENTS], "forget"), _texts(spare, "retain"))


def split(
    domain: str, facts: Sequence[Fact], sizes: tuple[int, int]
) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """Reported, tuning and remaining facts: all facts of one subject in one part."""
    subjects = sorted({fact.subject for fact in facts})
    order = torch.randperm(len(subjects), generator=generator(SEED, "split", domain)).tolist()
    place = {subjects[index]: rank for rank, index in enumerate(order)}
    ranked = sorted(facts, key=lambda fact: place[fact.subject])
    first, second = sizes[0], sum(sizes)
    return (
        [fact for fact in ranked if place[fact.subject] < first],
        [fact for fact in ranked if first <= place[fact.subject] < second],
        [fact for fact in ranked if second <= place[fact.subject]],
    )


def make_question(domain: str, fact: Fact) -> Question:
    """Four choices in drawn order: the answer and three different rivals."""
    name = f"{domain}/{fact.subject}/{fact.relation}"
    rng = generator(SEED, "choices", name)
    rivals = sorted(set(fact.rivals) - {fact.answer})
    drawn = torch.randperm(len(rivals), generator=rng)[:3].tolist()
    choices = [fact.answer, *(rivals[index] for index in drawn)]
    order = torch.randperm(4, generator=rng).tolist()
    a, b, c, d = (choices[index] for index in order)
    return Question(
        name, fact.prompt, (a, b, c, d), order.index(0), subject=domain, prompt=fact.prompt
    )


def _texts(facts: Sequence[Fact], purpose: str) -> list[str]:
    texts = [text for fact in facts for text in fact.texts]
    order = torch.randperm(len(texts), generator=generator(SEED, "texts", purpose))
    return [texts[index] for index in order.tolist()]
