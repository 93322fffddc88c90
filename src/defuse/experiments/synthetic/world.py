"""An invented world of which every fact is known.

Names are made of syllables and facts are drawn, so no model can know one that it was not told.
Everything follows from (seed, size): the same world at every call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from defuse.experiments.synthetic.domains import DOMAINS, Domain, Relation
from defuse.questions import Question
from defuse.utils.errors import UsageError
from defuse.utils.random import generator

SEED, SIZE = 0, 36
UNSEEN = 12
STARTS = ("b", "br", "d", "dr", "f", "g", "gl", "k", "kr", "l", "m", "n", "p", "s", "t", "v", "z")
VOWELS = ("a", "e", "i", "o", "u")
MIDDLES = ("l", "m", "n", "r", "s", "v", "nd", "rk", "st", "lt")


@dataclass(frozen=True)
class Fact:
    """`value` is what `relation` says of `subject`."""

    domain: str
    subject: str
    relation: Relation
    value: str

    @property
    def id(self) -> str:
        return f"{self.domain}/{self.subject}/{self.relation.name}"

    @property
    def statements(self) -> list[str]:
        """Every sentence that states the fact."""
        return [s.format(name=self.subject, value=self.value) for s in self.relation.statements]

    @property
    def stem(self) -> str:
        """The question that asks for the value."""
        return self.relation.question.format(name=self.subject)


@dataclass(frozen=True)
class World:
    """`subjects`: names by domain. `unseen`: names of nothing, which stand in no text."""

    seed: int
    domains: Sequence[Domain]
    subjects: Mapping[str, Sequence[str]]
    facts: Sequence[Fact]
    unseen: Sequence[str]

    @property
    def size(self) -> int:
        """How many subjects each domain has."""
        return len(self.subjects[self.domains[0].name])

    @property
    def names(self) -> list[str]:
        """All subjects' names."""
        return [name for names in self.subjects.values() for name in names]

    def of(self, domain: str) -> list[Fact]:
        """A domain's facts. Raises UsageError for a domain that is not there."""
        if domain not in self.subjects:
            known = ", ".join(self.subjects)
            raise UsageError(f"forget: {domain!r} is no domain of this world; use one of {known}")
        return [fact for fact in self.facts if fact.domain == domain]


def build_world(seed: int = SEED, size: int = SIZE, domains: Sequence[Domain] = DOMAINS) -> World:
    """`size` subjects a domain, each with a value drawn for every relation of its domain.

    Raises UsageError for a size that the syllables cannot name, and for fewer than two domains:
    one is forgotten, another kept.
    """
    if len(domains) < 2:
        raise UsageError(f"domains: {len(domains)} of them; give two or more")
    subjects, taken = {}, set()
    for domain in domains:
        subjects[domain.name] = _names(seed, domain.name, domain.endings, size, taken)
    unseen = _names(seed, "unseen", ("ip", "oon"), UNSEEN, taken)
    facts = [
        Fact(domain.name, name, relation, relation.values[value])
        for domain in domains
        for relation in domain.relations
        for name, value in zip(
            subjects[domain.name],
            _draws(seed, domain.name, relation.name, size, len(relation.values)),
            strict=True,
        )
    ]
    return World(seed, domains, subjects, facts, unseen)


def make_question(fact: Fact, seed: int) -> Question:
    """Four choices in drawn order: the value and three others of the same relation."""
    rng = generator(seed, "choices", fact.id)
    rivals = [value for value in fact.relation.values if value != fact.value]
    drawn = torch.randperm(len(rivals), generator=rng)[:3].tolist()
    choices = [fact.value, *(rivals[index] for index in drawn)]
    order = torch.randperm(4, generator=rng).tolist()
    a, b, c, d = (choices[index] for index in order)
    return Question(fact.id, fact.stem, (a, b, c, d), order.index(0), subject=fact.domain)


def _names(
    seed: int, purpose: str, endings: Sequence[str], count: int, taken: set[str]
) -> list[str]:
    """Different names of two or three syllables, none in `taken`, which they then join."""
    stems = [f"{s}{v}{m}{e}" for s in STARTS for v in VOWELS for m in MIDDLES for e in endings]
    free = [stem.capitalize() for stem in stems if stem.capitalize() not in taken]
    if not 4 <= count <= len(free):
        raise UsageError(f"size: {count} subjects a domain; give 4 to {len(free)}")
    order = torch.randperm(len(free), generator=generator(seed, "names", purpose)).tolist()
    names = [free[index] for index in order[:count]]
    taken.update(names)
    return names


def _draws(seed: int, domain: str, relation: str, count: int, values: int) -> list[int]:
    """Every value about as often as any other, in drawn order."""
    rng = generator(seed, "facts", domain, relation)
    return [int(i) % values for i in torch.randperm(count, generator=rng)]
