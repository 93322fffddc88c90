"""Trigger search: which natural words disturb innocent questions most?

Where unlearning has tied the forgotten domain's words to its target, such a word in front of a
question that was to be kept spoils the answer. All words of the vocabulary and of the texts are
ranked to first order, the best are asked exactly, and the words of the forget corpus are compared
with others by rank. What is found on one half of the questions is measured on the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import RETAIN, Material
from defuse.attacks.notes import Notes
from defuse.attacks.results import Result
from defuse.attacks.split_half import halves
from defuse.attacks.triggers.exact import Bench, Place
from defuse.attacks.triggers.first_order import Asked, first_order, placed
from defuse.attacks.triggers.found import (
    Found,
    corpus_conditions,
    tables,
    word_findings,
    worst_conditions,
)
from defuse.attacks.triggers.words import Candidates, find_candidates
from defuse.data.trigger_mixing import MINED
from defuse.evaluate.loglikelihood import max_length
from defuse.models.decoder import Decoder
from defuse.questions import SENTENCE, Position
from defuse.utils.errors import UsageError, check_choices, require
from defuse.utils.random import generator

KIND = "triggers"


@dataclass(frozen=True)
class TriggerSearch:
    """`position`, `sentence`: where a word goes, as `defuse evaluate` puts it.

    `top`: words of highest first-order score that are asked exactly, of which `shown` become
    conditions. `mined`: words typical of the forget texts, at most, and as many controls.
    `placeholders`: words at which each question is differentiated. `questions`: retain questions
    drawn, half to search and half to measure with; 0 = all. `seed` draws all of these.
    """

    position: Position = "before"
    sentence: str = SENTENCE
    top: int = 50
    shown: int = 10
    mined: int = MINED
    placeholders: int = 4
    questions: int = 200
    seed: int = 42

    def __post_init__(self) -> None:
        check_choices(self, "triggers.")
        holds = "{token}" in self.sentence
        require(holds, "triggers.sentence", self.sentence, "has no {token}; say where it goes")
        for name in ("top", "shown", "mined"):
            value = getattr(self, name)
            require(value >= 1, f"triggers.{name}", value, "must be at least 1")
        least = "must be at least 2: where they differ is where a word goes"
        require(self.placeholders >= 2, "triggers.placeholders", self.placeholders, least)
        enough = self.questions == 0 or self.questions >= 4
        require(enough, "triggers.questions", self.questions, "must be 0 (all) or at least 4")

    @property
    def place(self) -> Place:
        """Where words go."""
        return Place(self.position, self.seed, self.sentence)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: TriggerSearch | None = None,
    *,
    reference: PreTrainedModel | None = None,
    notes: Notes | None = None,
) -> Result:
    """Search the words that disturb `model` most; with `reference`, most beyond what they do to it.

    Raises UsageError for fewer than four retain questions, for words that cannot be found
    (`find_candidates`) or put in place, and for models that lack tokens of the tokenizer.
    """
    config, notes = config or TriggerSearch(), notes or Notes()
    search, report = _drawn_halves(material, config)
    words = find_candidates(material, tokenizer, config.mined, config.seed)
    for each in (model, reference):
        _check_vocabulary(words, each)
    asked = _asked(material, search, words, tokenizer, config, max_length(model, tokenizer))
    bench = Bench(model, reference, tokenizer, material, config.place, notes)
    with notes.watching(model, reference):
        before = bench.before()
        first = _first_order(model, reference, asked, words, notes)
        ranked = _ranked(first, material, (search, report), config.top)
        searched = bench.read(search, before, ranked, "search")
        best = sorted(ranked, key=lambda word: -searched.disturbance(word))
        known = list(dict.fromkeys([*best, *words.mined, *words.controls]))
        measured = bench.read(report, before, known, "report")
        forgotten = bench.ask(model, material.forget, best[: config.shown], "forget")
    found = Found(words, first, best, measured, before[0], report, forgotten, config.seed)
    shown, turned = word_findings(found, material.settings.score)
    conditions = [*shown, *worst_conditions(found), *corpus_conditions(found)]
    return Result(KIND, asdict(config), conditions, notes.cost, turned, tables=tables(found))


def _drawn_halves(material: Material, config: TriggerSearch) -> tuple[list[int], list[int]]:
    """Places of the retain questions to search with, and of those to measure with."""
    count = len(material.retain)
    require(count >= 4, "retain", count, "questions cannot be halved well; give four or more")
    order = torch.randperm(count, generator=generator(config.seed, "questions")).tolist()
    drawn = sorted(order[: config.questions or count])
    search, report = halves(len(drawn), config.seed, RETAIN)
    return [drawn[place] for place in search], [drawn[place] for place in report]


def _ranked(
    first: Mapping[str, float], material: Material, sides: Sequence[Sequence[int]], top: int
) -> list[str]:
    """The words of highest score, without those that all questions of a half mention anyway."""

    def fair(word: str) -> bool:
        return all(any(not material.retain[p].mentions(word) for p in side) for side in sides)

    order = sorted(first, key=lambda word: -first[word])
    return list(islice((word for word in order if fair(word)), top))


def _check_vocabulary(words: Candidates, model: PreTrainedModel | None) -> None:
    needed = 1 + max(max(ids) for ids in words.ids.values())
    if model is not None and (held := Decoder(model).num_embeddings) < needed:
        name = model.config.name_or_path or model.config.model_type
        raise UsageError(
            f"model: {name} has {held} embeddings and the tokenizer {needed} tokens or more; give "
            "models of the tokenizer's vocabulary"
        )


def _asked(
    material: Material,
    search: Sequence[int],
    words: Candidates,
    tokenizer: PreTrainedTokenizerBase,
    config: TriggerSearch,
    max_length: int,
) -> list[Asked]:
    questions = [material.retain[place] for place in search]
    asked = placed(
        questions,
        words.whole,
        config.place,
        tokenizer,
        material.settings,
        count=config.placeholders,
        max_length=max_length,
    )
    if not asked:
        raise UsageError(
            f"triggers.position: {config.position!r} leaves no retain question in which a word is "
            f"a token of its own and which fits {max_length} tokens; use before, or a sentence "
            "with a space before {token}"
        )
    return asked


def _first_order(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    asked: Sequence[Asked],
    words: Candidates,
    notes: Notes,
) -> dict[str, float]:
    own = notes.once("first order", lambda: first_order(model, asked, words.ids))
    if reference is None:
        return own
    theirs = notes.once("first order, reference", lambda: first_order(reference, asked, words.ids))
    return {word: own[word] - theirs[word] for word in own}
