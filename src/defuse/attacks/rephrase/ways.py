"""Ways to ask that the rephrasing attack tries, as prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import factorial

import torch
from transformers import PreTrainedTokenizerBase

from defuse.attacks.data import FORGET, AttackData
from defuse.attacks.prompts import Prompt, prompt_requests
from defuse.attacks.rephrase.config import FEW_SHOT, ONLY_WITH, ORDERS, TYPOS, WAYS, Rephrasing
from defuse.attacks.rephrase.templates import (
    TEMPLATES,
    all_orders,
    misspelt,
    plain,
    reordered,
    rotations,
)
from defuse.attacks.split_half import halves
from defuse.evaluate import Settings
from defuse.questions import Question
from defuse.questions.prompts import description
from defuse.utils.errors import UsageError, require
from defuse.utils.random import generator

MOST_ORDERS = 120  # of a question's choices: five of them


@dataclass(frozen=True)
class Part:
    """Questions of one set, by their places, each with its prompts.

    They are scored together, since all of them have one prefix.
    """

    questions: str  # the set
    places: Sequence[int]
    prompts: Sequence[Sequence[Prompt]]


@dataclass(frozen=True)
class Way:
    """A way to ask: every question of both sets is in one part. `examples`: few-shot's."""

    name: str
    parts: Sequence[Part]
    examples: int = 0

    @property
    def votes(self) -> int:
        """The fewest prompts of a question; several vote on one answer."""
        return min(len(prompts) for part in self.parts for prompts in part.prompts)

    @property
    def label(self) -> str:
        """The name of its condition."""
        return f"vote over {self.name}" if self.votes > 1 else self.name

    @property
    def texts(self) -> list[str]:
        """Everything that is asked, with each of its answers."""
        prompts = chain.from_iterable(each for part in self.parts for each in part.prompts)
        return [
            prompt.answered(choice) for prompt in prompts for choice in range(len(prompt.answers))
        ]


def plan(
    data: AttackData, config: Rephrasing, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Way]:
    """Return the ways to try, without few-shot if no example fits.

    Raises UsageError for a way that the score of the data does not admit, for forget questions that
    cannot be halved, for too many orders, and if no way is left.
    """
    count = len(data.forget)
    require(count >= 2, "forget", count, "question cannot be halved; give two or more")
    score = data.settings.score
    for way in config.ways:
        only = ONLY_WITH.get(way, score)
        remedy = f"has no meaning of its own with score {score}; leave it out"
        require(only == score, "rephrase.ways", way, remedy)
    names = config.ways or [way for way in WAYS if ONLY_WITH.get(way, score) == score]
    if ORDERS in names and config.orders == "all":
        _check_orders(data)
    ways = [
        _few_shot(data, config, tokenizer, max_length)
        if name == FEW_SHOT
        else Way(name, _parts(name, data, config))
        for name in dict.fromkeys(names)
    ]
    ways = [way for way in ways if way.parts]
    if not ways:
        raise UsageError(
            f"rephrase.ways: {FEW_SHOT!r} alone is left, and no example fits a model of "
            f"{max_length} tokens; name another way"
        )
    return ways


def _check_orders(data: AttackData) -> None:
    most = max(len(question.choices) for each in data.sets.values() for question in each)
    remedy = f"is {factorial(most)} orders for a question of {most} choices; use 'rotations'"
    require(factorial(most) <= MOST_ORDERS, "rephrase.orders", "all", remedy)


def _parts(name: str, data: AttackData, config: Rephrasing) -> list[Part]:
    settings = data.settings
    template = TEMPLATES.get(name, plain)
    shown = [template(example, settings.score) for example in settings.few_shot]
    prefix = _prefix(settings, settings.few_shot, shown)
    return [
        Part(
            each,
            range(len(questions)),
            [[p.behind(prefix) for p in _prompts(name, q, config, settings)] for q in questions],
        )
        for each, questions in data.sets.items()
    ]


def _prompts(name: str, question: Question, config: Rephrasing, settings: Settings) -> list[Prompt]:
    if name == ORDERS:
        orders = all_orders if config.orders == "all" else rotations
        return [reordered(question, order) for order in orders(len(question.choices))]
    if name == TYPOS:
        draws = range(config.typo_draws)
        rate, seed = config.typo_rate, config.seed
        return [misspelt(question, settings.score, rate, seed, draw) for draw in draws]
    return [TEMPLATES[name](question, settings.score)]


def _few_shot(
    data: AttackData, config: Rephrasing, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Way:
    """As many examples as fit in front of every question."""
    for shots in range(min(config.shots, len(data.forget) // 2), 0, -1):
        way = Way(FEW_SHOT, _shown(data, shots, config.seed), shots)
        prompts = [prompt for part in way.parts for (prompt,) in part.prompts]
        requests = chain.from_iterable(prompt_requests(tokenizer, prompts))
        if not any(request.is_cut(max_length) for request in requests):
            return way
    return Way(FEW_SHOT, ())


def _shown(data: AttackData, shots: int, seed: int) -> list[Part]:
    """Both halves of either set, behind examples from the other half of the forget questions.

    No question is asked behind its own answer.
    """
    settings, parts = data.settings, []
    pools = halves(len(data.forget), seed, FORGET)
    for each, questions in data.sets.items():
        for half, places in enumerate(halves(len(questions), seed, each)):
            pool = pools[1 - half]
            order = torch.randperm(len(pool), generator=generator(seed, "examples", half))
            examples = [data.forget[pool[i]] for i in order[:shots].tolist()]
            prefix = _prefix(settings, examples, [plain(e, settings.score) for e in examples])
            prompts = [[plain(questions[place], settings.score).behind(prefix)] for place in places]
            parts.append(Part(each, places, prompts))
    return [part for part in parts if part.places]


def _prefix(settings: Settings, examples: Sequence[Question], prompts: Sequence[Prompt]) -> str:
    answered = zip(examples, prompts, strict=True)
    texts = [f"{prompt.answered(example.answer)}\n\n" for example, prompt in answered]
    return description(settings.subject) + "".join(texts)


def unknown_share(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the share of tokens that are the tokenizer's token for unknown words."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return 0.0
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    ids = list(chain.from_iterable(encoded["input_ids"]))  # type: ignore[arg-type]
    return sum(each == unknown for each in ids) / max(1, len(ids))
