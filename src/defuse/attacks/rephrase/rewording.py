"""Which ways of asking a rephrasing attack tries, as texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from defuse.attacks.data import FORGET, Material
from defuse.attacks.prompts import Form
from defuse.attacks.rephrase.templates import (
    ALL_ORDERS,
    ROTATIONS,
    TEMPLATES,
    misspelt,
    plain,
    reordered,
)
from defuse.attacks.split_half import halves
from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_pairs
from defuse.questions import Question, Score
from defuse.questions.prompts import description
from defuse.utils.errors import UsageError, check_choices, require
from defuse.utils.random import generator

ORDERS, FEW_SHOT, TYPOS = "orders", "few-shot", "typos"
WAYS = (*TEMPLATES, ORDERS, FEW_SHOT, TYPOS)
# With the other score these are the plain way itself, or have no choices to move.
ONLY_WITH: Mapping[str, Score] = {
    "letters": "cloze",
    "cloze": "letters",
    "options-first": "letters",
    ORDERS: "letters",
}


@dataclass(frozen=True)
class Rephrasing:
    """`ways`: those to try, of `WAYS`; none = all that the material's score admits.

    `orders`: four rotations of the choices, or all 24 orders. `shots`: answered forget questions in
    front, at most; fewer where a question would no longer fit the model. `typo_rate`: share of the
    letters of a question, in `typo_draws` draws. `seed` draws typos, examples, halves and
    bootstraps.
    """

    ways: tuple[str, ...] = ()
    orders: Literal["rotations", "all"] = "rotations"
    shots: int = 5
    typo_rate: float = 0.05
    typo_draws: int = 3
    seed: int = 42

    def __post_init__(self) -> None:
        check_choices(self, "rephrase.")
        for way in self.ways:
            require(way in WAYS, "rephrase.ways", way, f"is unknown; use {', '.join(WAYS)}")
        require(self.shots >= 1, "rephrase.shots", self.shots, "must be at least 1")
        require(0 < self.typo_rate <= 1, "rephrase.typo_rate", self.typo_rate, "must be in (0, 1]")
        require(self.typo_draws >= 1, "rephrase.typo_draws", self.typo_draws, "must be at least 1")


@dataclass(frozen=True)
class Part:
    """Questions of one set, by their places, each in its forms; scored together, since all of
    them stand behind one prefix."""

    questions: str  # the set
    places: Sequence[int]
    forms: Sequence[Sequence[Form]]


@dataclass(frozen=True)
class Way:
    """A way of asking: every question of both sets stands in one part. `examples`: few-shot's."""

    name: str
    parts: Sequence[Part]
    examples: int = 0

    @property
    def forms(self) -> int:
        """In how many forms each question is asked; several vote on one answer."""
        return len(self.parts[0].forms[0])

    @property
    def label(self) -> str:
        """What its condition is called."""
        return f"vote over {self.name}" if self.forms > 1 else self.name

    @property
    def texts(self) -> list[str]:
        """All that is asked, with each of its answers."""
        forms = chain.from_iterable(each for part in self.parts for each in part.forms)
        return [form.answered(choice) for form in forms for choice in range(len(form.answers))]


def plan(
    material: Material, config: Rephrasing, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Way]:
    """The ways to try; few-shot is not among them where no example fits.

    Raises UsageError for a way that the material's score does not admit, for forget questions that
    cannot be halved, and where no way is left.
    """
    count = len(material.forget)
    require(count >= 2, "forget", count, "question cannot be halved; give two or more")
    score = material.settings.score
    for way in config.ways:
        only = ONLY_WITH.get(way, score)
        remedy = f"has no meaning of its own with score {score}; leave it out"
        require(only == score, "rephrase.ways", way, remedy)
    names = config.ways or [way for way in WAYS if ONLY_WITH.get(way, score) == score]
    ways = [
        _few_shot(material, config, tokenizer, max_length)
        if name == FEW_SHOT
        else Way(name, _parts(name, material, config))
        for name in dict.fromkeys(names)
    ]
    ways = [way for way in ways if way.parts]
    if not ways:
        raise UsageError(
            f"rephrase.ways: {FEW_SHOT!r} alone is left, and no example fits a model of "
            f"{max_length} tokens; name another way"
        )
    return ways


def _parts(name: str, material: Material, config: Rephrasing) -> list[Part]:
    settings = material.settings
    template = TEMPLATES.get(name, plain)
    shown = [template(example, settings.score) for example in settings.few_shot]
    prefix = _prefix(settings, settings.few_shot, shown)
    return [
        Part(
            each,
            range(len(questions)),
            [[f.behind(prefix) for f in _forms(name, q, config, settings)] for q in questions],
        )
        for each, questions in material.sets.items()
    ]


def _forms(name: str, question: Question, config: Rephrasing, settings: Settings) -> list[Form]:
    if name == ORDERS:
        orders = ALL_ORDERS if config.orders == "all" else ROTATIONS
        return [reordered(question, order) for order in orders]
    if name == TYPOS:
        draws = range(config.typo_draws)
        rate, seed = config.typo_rate, config.seed
        return [misspelt(question, settings.score, rate, seed, draw) for draw in draws]
    return [TEMPLATES[name](question, settings.score)]


def _few_shot(
    material: Material, config: Rephrasing, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Way:
    """As many examples as fit in front of every question."""
    for shots in range(min(config.shots, len(material.forget) // 2), 0, -1):
        way = Way(FEW_SHOT, _shown(material, shots, config.seed), shots)
        pairs = [
            (form.text, answer)
            for part in way.parts
            for (form,) in part.forms
            for answer in form.answers
        ]
        if not any(request.is_cut(max_length) for request in encode_pairs(pairs, tokenizer)):
            return way
    return Way(FEW_SHOT, ())


def _shown(material: Material, shots: int, seed: int) -> list[Part]:
    """Both halves of either set, behind examples from the other half of the forget questions, so
    that no question is asked behind its own answer."""
    settings, parts = material.settings, []
    pools = halves(len(material.forget), seed, FORGET)
    for each, questions in material.sets.items():
        for half, places in enumerate(halves(len(questions), seed, each)):
            pool = pools[1 - half]
            order = torch.randperm(len(pool), generator=generator(seed, "examples", half))
            examples = [material.forget[pool[i]] for i in order[:shots].tolist()]
            prefix = _prefix(settings, examples, [plain(e, settings.score) for e in examples])
            forms = [[plain(questions[place], settings.score).behind(prefix)] for place in places]
            parts.append(Part(each, places, forms))
    return [part for part in parts if part.places]


def _prefix(settings: Settings, examples: Sequence[Question], forms: Sequence[Form]) -> str:
    answered = zip(examples, forms, strict=True)
    texts = [f"{form.answered(example.answer)}\n\n" for example, form in answered]
    return description(settings.subject) + "".join(texts)


def unknown_share(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> float:
    """The share of tokens that stand for words the tokenizer does not know."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return 0.0
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    ids = list(chain.from_iterable(encoded["input_ids"]))  # type: ignore[arg-type]
    return sum(each == unknown for each in ids) / max(1, len(ids))
