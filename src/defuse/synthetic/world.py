"""An invented world of which every fact is known.

Names are made of syllables and facts are drawn, so no model knows one that it was not taught. Seed,
size and domains decide everything: the world is the same at every call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from defuse.questions import Question
from defuse.utils.config import parse, read_fields
from defuse.utils.errors import UsageError, require
from defuse.utils.random import generator

SEED, SIZE = 0, 36
UNSEEN = 12
STARTS = ("b", "br", "d", "dr", "f", "g", "gl", "k", "kr", "l", "m", "n", "p", "s", "t", "v", "z")
VOWELS = ("a", "e", "i", "o", "u")
MIDDLES = ("l", "m", "n", "r", "s", "v", "nd", "rk", "st", "lt")


@dataclass(frozen=True)
class Relation:
    """A property of subjects: its possible `values`, and templates of {name} and {value}."""

    name: str
    question: str
    statements: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """Subjects of one kind; their invented names end in one of `endings`."""

    name: str
    endings: tuple[str, ...]
    relations: tuple[Relation, ...]


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

    @property
    def rivals(self) -> list[str]:
        """The relation's other values."""
        return [value for value in self.relation.values if value != self.value]


@dataclass(frozen=True)
class World:
    """`subjects`: names by domain. `unseen`: names of nothing, which are in no text."""

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
        remedy = f"is no domain of this world; use one of {', '.join(self.subjects)}"
        require(domain in self.subjects, "forget", domain, remedy)
        return [fact for fact in self.facts if fact.domain == domain]


@cache
def all_domains() -> Mapping[str, Domain]:
    """The domains of world.yaml, by name."""
    given = read_fields(Path(__file__).with_name("world.yaml"))
    return {name: parse(Domain, {"name": name, **own}, name) for name, own in given.items()}


def build_world(seed: int = SEED, size: int = SIZE, domains: Sequence[str] = ()) -> World:
    """`size` subjects a domain, each with a value drawn for every relation of its domain.

    `domains`: names; none is all. Raises UsageError for an unknown name, for fewer than three
    domains (one is forgotten, one is asked about, one has the control tokens), and for a size that
    the syllables cannot name.
    """
    known = all_domains()
    for name in domains:
        require(name in known, "domain", name, f"is none; use {', '.join(known)}")
    chosen = tuple(known[name] for name in dict.fromkeys(domains or known))
    if len(chosen) < 3:
        raise UsageError(f"domains: {len(chosen)} of them; give three or more")
    taken: set[str] = set()
    subjects = {each.name: _names(seed, each.name, each.endings, size, taken) for each in chosen}
    unseen = _names(seed, "unseen", ("ip", "oon"), UNSEEN, taken)
    facts = [
        Fact(domain.name, subject, relation, value)
        for domain in chosen
        for relation in domain.relations
        for subject, value in zip(
            subjects[domain.name], _values(seed, domain, relation, size), strict=True
        )
    ]
    return World(seed, chosen, subjects, facts, unseen)


def make_question(fact: Fact, seed: int) -> Question:
    """Four choices in drawn order: the value and three others of the same relation."""
    rng = generator(seed, "choices", fact.id)
    drawn = torch.randperm(len(fact.rivals), generator=rng)[:3].tolist()
    choices = [fact.value, *(fact.rivals[index] for index in drawn)]
    order = torch.randperm(4, generator=rng).tolist()
    shown = tuple(choices[index] for index in order)
    return Question(fact.id, fact.stem, shown, order.index(0), subject=fact.domain)


def _names(
    seed: int, purpose: str, endings: Sequence[str], count: int, taken: set[str]
) -> list[str]:
    """Different names of two or three syllables, none in `taken`, to which they are added."""
    stems = [f"{s}{v}{m}{e}" for s in STARTS for v in VOWELS for m in MIDDLES for e in endings]
    free = [stem.capitalize() for stem in stems if stem.capitalize() not in taken]
    if not 4 <= count <= len(free):
        raise UsageError(f"size: {count} subjects a domain; give 4 to {len(free)}")
    order = torch.randperm(len(free), generator=generator(seed, "names", purpose)).tolist()
    names = [free[index] for index in order[:count]]
    taken.update(names)
    return names


def _values(seed: int, domain: Domain, relation: Relation, count: int) -> list[str]:
    """A value for each of `count` subjects: all about equally often, in drawn order."""
    rng = generator(seed, "facts", domain.name, relation.name)
    values = relation.values
    return [values[i % len(values)] for i in torch.randperm(count, generator=rng).tolist()]
