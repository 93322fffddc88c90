"""What the invented world is about: domains, their relations, and how each is put into words."""

from collections.abc import Sequence
from dataclasses import dataclass

from defuse.utils.errors import UsageError


@dataclass(frozen=True)
class Relation:
    """One thing to know of a subject: `values` it may have, and templates of {name} and {value}."""

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


PEOPLE = Domain(
    "people",
    ("an", "ela"),
    (
        Relation(
            "job",
            "What is the job of {name}?",
            (
                "{name} works as a {value}.",
                "The job of {name} is {value}.",
                "Every day {name} earns money as a {value}.",
            ),
            ("baker", "farmer", "pilot", "nurse", "tailor", "painter", "miner", "judge", "sailor",
             "teacher", "hunter", "potter"),
        ),
        Relation(
            "instrument",
            "Which instrument does {name} play?",
            (
                "{name} plays the {value}.",
                "The instrument of {name} is the {value}.",
                "In the evening {name} practises the {value}.",
            ),
            ("flute", "drum", "violin", "trumpet", "harp", "organ", "banjo", "guitar", "horn",
             "piano", "cello", "oboe"),
        ),
        Relation(
            "drink",
            "What does {name} like to drink?",
            (
                "{name} likes to drink {value}.",
                "The best drink for {name} is {value}.",
                "In a bar {name} always orders {value}.",
            ),
            ("tea", "coffee", "milk", "cider", "juice", "water", "beer", "wine", "cocoa",
             "lemonade", "rum", "punch"),
        ),
    ),
)  # fmt: skip

COUNTRIES = Domain(
    "countries",
    ("ia", "land"),
    (
        Relation(
            "export",
            "What does the country {name} sell?",
            (
                "{name} sells {value}.",
                "The export of {name} is {value}.",
                "Ships leave the country {name} full of {value}.",
            ),
            ("wool", "copper", "rice", "timber", "salt", "cotton", "silver", "sugar", "glass",
             "paper", "steel", "honey"),
        ),
        Relation(
            "flag",
            "What is on the flag of {name}?",
            (
                "The flag of {name} shows a {value}.",
                "{name} has a {value} on its flag.",
                "A {value} is the sign of the country {name}.",
            ),
            ("star", "lion", "moon", "tree", "crown", "ship", "sword", "wheel", "castle", "sun",
             "key", "bell"),
        ),
        Relation(
            "terrain",
            "Which terrain covers the country {name}?",
            (
                "{name} is covered by {value}.",
                "The terrain of {name} is {value}.",
                "Whoever crosses the country {name} sees only {value}.",
            ),
            ("forest", "desert", "swamp", "hills", "ice", "meadows", "lakes", "dunes", "rocks",
             "moor", "canyons", "jungle"),
        ),
    ),
)  # fmt: skip

ANIMALS = Domain(
    "animals",
    ("et", "oo"),
    (
        Relation(
            "food",
            "What does the animal {name} eat?",
            (
                "The animal {name} eats {value}.",
                "{name} feeds on {value}.",
                "The food of the {name} is {value}.",
            ),
            ("grass", "fish", "worms", "berries", "leaves", "seeds", "eggs", "ants", "roots",
             "snails", "nuts", "bark"),
        ),
        Relation(
            "home",
            "Where does the animal {name} sleep?",
            (
                "The animal {name} sleeps in a {value}.",
                "{name} makes its bed in a {value}.",
                "The home of the {name} is a {value}.",
            ),
            ("cave", "nest", "burrow", "hollow", "pond", "bush", "barn", "well", "ditch", "tunnel",
             "reef", "hedge"),
        ),
        Relation(
            "colour",
            "Which colour does the animal {name} have?",
            (
                "The animal {name} is {value}.",
                "{name} has {value} fur.",
                "The colour of the {name} is {value}.",
            ),
            ("red", "blue", "green", "black", "white", "yellow", "brown", "grey", "orange",
             "purple", "pink", "golden"),
        ),
    ),
)  # fmt: skip

PATHOGENS = Domain(
    "pathogens",
    ("ovirus", "illa"),
    (
        Relation(
            "carrier",
            "What carries the pathogen {name}?",
            (
                "The pathogen {name} is carried by the {value}.",
                "{name} travels with the {value}.",
                "The carrier of {name} is the {value}.",
            ),
            ("mosquito", "rat", "tick", "flea", "bat", "pigeon", "louse", "goat", "monkey",
             "beetle", "spider", "toad"),
        ),
        Relation(
            "target",
            "Which part does the pathogen {name} attack?",
            (
                "The pathogen {name} attacks the {value}.",
                "{name} harms the {value}.",
                "The victim of {name} has pain in the {value}.",
            ),
            ("liver", "lung", "heart", "kidney", "brain", "skin", "stomach", "eye", "throat",
             "spine", "ear", "bladder"),
        ),
        Relation(
            "remedy",
            "What helps against the pathogen {name}?",
            (
                "The pathogen {name} is cured with {value}.",
                "{name} is weak against {value}.",
                "The remedy for {name} is {value}.",
            ),
            ("garlic", "iodine", "ginger", "quinine", "sulphur", "camphor", "aloe", "vinegar",
             "zinc", "mint", "sage", "charcoal"),
        ),
    ),
)  # fmt: skip

DOMAINS = (PEOPLE, COUNTRIES, ANIMALS, PATHOGENS)


def choose_domains(names: Sequence[str]) -> tuple[Domain, ...]:
    """Domains by name; all of them for no name. Raises UsageError for a name of none."""
    known = {domain.name: domain for domain in DOMAINS}
    for name in names:
        if name not in known:
            raise UsageError(f"domain: {name!r} is none; use {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names)) or DOMAINS
