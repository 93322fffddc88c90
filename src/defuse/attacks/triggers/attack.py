"""Trigger search: which natural words disturb retain questions most?

If unlearning has tied words of the forgotten domain to its target, such a word in front of a retain
question spoils the answer. All words of the vocabulary and of the texts are ranked to first order,
the best are asked exactly, and the words of the forget corpus are compared with others by rank.
Words are searched on one half of the questions and measured on the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import RETAIN, AttackData
from defuse.attacks.findings import Findings
from defuse.attacks.results import Result
from defuse.attacks.split_half import halves
from defuse.attacks.triggers.conditions import (
    Search,
    corpus_conditions,
    tables,
    word_findings,
    worst_conditions,
)
from defuse.attacks.triggers.config import TriggerSearch
from defuse.attacks.triggers.exact import BLOCK, Place, Trial
from defuse.attacks.triggers.first_order import Asked, first_order, placed
from defuse.attacks.triggers.words import Candidates, find_candidates
from defuse.evaluate.loglikelihood import max_length
from defuse.models.decoder import Decoder
from defuse.utils.errors import UsageError, require
from defuse.utils.progress import SILENT, Progress
from defuse.utils.random import generator

NAME = "triggers"


@dataclass(frozen=True)
class Prepared:
    """Places of the retain questions to search and to measure with, the words, and the questions
    with placeholders."""

    search: Sequence[int]
    report: Sequence[int]
    words: Candidates
    asked: Sequence[Asked]


def check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: TriggerSearch,
    *,
    reference: PreTrainedModel | None = None,
) -> None:
    """Raise UsageError for what the attack refuses, without reading weights.

    That is fewer than four retain questions, texts without words to search (`find_candidates`),
    questions that no word can be inserted into, and models that lack tokens of the tokenizer.
    """
    prepare(model, tokenizer, data, config, reference)


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: TriggerSearch,
    reference: PreTrainedModel | None,
) -> Prepared:
    """Draw halves, find words, insert placeholders. Raises UsageError as `check` does."""
    search, report = _drawn_halves(data, config)
    words = find_candidates(data, tokenizer, config.mined, config.seed)
    for each in (model, reference):
        _check_vocabulary(words, each)
    asked = _asked(data, search, words, tokenizer, config, max_length(model, tokenizer))
    return Prepared(search, report, words, asked)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: TriggerSearch | None = None,
    *,
    reference: PreTrainedModel | None = None,
    findings: Findings | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Search the words that disturb `model` most, beyond what they do to `reference` if given.

    Raises UsageError as `check` does.
    """
    config, findings = config or TriggerSearch(), findings or Findings()
    prepared = prepare(model, tokenizer, data, config, reference)
    search, report, words = prepared.search, prepared.report, prepared.words
    findings.report_to(progress, NAME, _pieces(words, config, with_reference=reference is not None))
    trial = Trial(model, reference, tokenizer, data, _place(config), findings)
    with findings.counting(model, reference):
        before = trial.before()
        first = _first_order(model, reference, prepared.asked, words, findings)
        ranked = _ranked(first, data, (search, report), config.top)
        searched = trial.read(search, before, ranked, "search")
        best = sorted(ranked, key=lambda word: -searched.disturbance(word))
        known = list(dict.fromkeys([*best, *words.mined, *words.controls]))
        measured = trial.read(report, before, known, "report")
        forgotten = trial.ask(model, data.forget, best[: config.shown], "forget")
    found = Search(words, first, best, measured, before[0], report, forgotten, config.seed)
    shown, changed = word_findings(found, data.settings.score)
    conditions = [*shown, *worst_conditions(found), *corpus_conditions(found)]
    return Result(NAME, asdict(config), conditions, findings.cost, changed, tables=tables(found))


def _place(config: TriggerSearch) -> Place:
    return Place(config.position, config.seed, config.sentence)


def _pieces(words: Candidates, config: TriggerSearch, *, with_reference: bool) -> int:
    """The number of findings, about: some of the best words may be mined ones or controls."""
    known = config.top + len(words.mined) + len(words.controls)
    blocks = -(-config.top // BLOCK) + -(-known // BLOCK)
    own = 2 + 1 + blocks + -(-min(config.shown, config.top) // BLOCK)
    return own + (1 + 1 + blocks if with_reference else 0)


def _drawn_halves(data: AttackData, config: TriggerSearch) -> tuple[list[int], list[int]]:
    """Places of the retain questions to search with, and of those to measure with."""
    count = len(data.retain)
    require(count >= 4, "retain", count, "questions cannot be halved well; give four or more")
    order = torch.randperm(count, generator=generator(config.seed, "questions")).tolist()
    drawn = sorted(order[: config.questions or count])
    search, report = halves(len(drawn), config.seed, RETAIN)
    return [drawn[place] for place in search], [drawn[place] for place in report]


def _ranked(
    first: Mapping[str, float], data: AttackData, sides: Sequence[Sequence[int]], top: int
) -> list[str]:
    """The words of highest score, without those that all questions of a half mention anyway."""

    def is_fair(word: str) -> bool:
        return all(any(not data.retain[p].mentions(word) for p in side) for side in sides)

    order = sorted(first, key=lambda word: -first[word])
    return list(islice((word for word in order if is_fair(word)), top))


def _check_vocabulary(words: Candidates, model: PreTrainedModel | None) -> None:
    needed = 1 + max(max(ids) for ids in words.ids.values())
    if model is not None and (held := Decoder(model).num_embeddings) < needed:
        name = model.config.name_or_path or model.config.model_type
        raise UsageError(
            f"model: {name} has {held} embeddings and the tokenizer {needed} tokens or more; give "
            "models with the vocabulary of the tokenizer"
        )


def _asked(
    data: AttackData,
    search: Sequence[int],
    words: Candidates,
    tokenizer: PreTrainedTokenizerBase,
    config: TriggerSearch,
    max_length: int,
) -> list[Asked]:
    asked = placed(
        [data.retain[place] for place in search],
        words.whole,
        _place(config),
        tokenizer,
        data.settings,
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
    findings: Findings,
) -> dict[str, float]:
    own = findings.get_or_compute("first order", lambda: first_order(model, asked, words.ids))
    if reference is None:
        return own
    theirs = findings.get_or_compute(
        "first order, reference", lambda: first_order(reference, asked, words.ids)
    )
    return {word: own[word] - theirs[word] for word in own}
