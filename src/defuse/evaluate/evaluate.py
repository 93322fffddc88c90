"""Ask a model questions, clean and with a stray token in them."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from defuse.evaluate.answers import Evaluation, MCAnswer, Part, Settings
from defuse.evaluate.encoding import encode_pairs
from defuse.evaluate.loglikelihood import OnScored, max_length, score_share
from defuse.evaluate.resume import Ledger
from defuse.evaluate.token_tree import Request
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.questions import (
    ORIGINAL,
    Perturbation,
    Question,
    Variant,
    ask,
    continuations,
    few_shot_part,
)
from defuse.utils.errors import UsageError

Forms = dict[Variant, Question]


@dataclass(frozen=True)
class _Asked:
    """A part's questions in all their forms, and whether each prompt was cut on the left."""

    forms: list[Forms]
    cut: list[list[bool]]
    prompt_hash: str


def evaluate_questions(
    loaded: LoadedModel,
    questions: Sequence[Question],
    settings: Settings | None = None,
    perturbation: Perturbation | None = None,
    *,
    on_scored: OnScored = lambda _: None,
    ledger: Ledger | None = None,
) -> Evaluation:
    """Ask `loaded` every question, and with a perturbation also its perturbed forms.

    All forms of a question are scored in one row that computes their common tokens once; what all
    questions begin with (description, examples) is computed once for all. `on_scored` is told how
    many questions each batch has finished. A `ledger` keeps what is scored, and shares it out to
    processes. Raises UsageError for no questions, for an architecture `Decoder` does not know, and
    for a model whose log-probabilities are not finite.
    """
    part = Part(tuple(questions), settings or Settings())
    return evaluate_parts(loaded, [part], perturbation, on_scored=on_scored, ledger=ledger)


def evaluate_parts(
    loaded: LoadedModel,
    parts: Sequence[Part],
    perturbation: Perturbation | None = None,
    *,
    on_scored: OnScored = lambda _: None,
    ledger: Ledger | None = None,
) -> Evaluation:
    """As `evaluate_questions`, for several lists of questions, each asked in its own way."""
    if not parts or not all(part.questions for part in parts):
        raise UsageError("questions: there are none; give at least one")
    start = time.perf_counter()
    ledger = ledger or Ledger()
    asked = [_ask(loaded, part, perturbation, ledger, on_scored) for part in parts]
    ledger.exchange()
    answers = [_answers(each, ledger.scores(each.prompt_hash)) for each in asked]
    return Evaluation(
        model=loaded.name,
        settings=_common(parts),
        perturbation=perturbation,
        answers={v: list(chain.from_iterable(o[v] for o in answers)) for v in answers[0]},
        prompt_hash=_common_hash([each.prompt_hash for each in asked]),
        seconds=time.perf_counter() - start,
    )


def _ask(
    loaded: LoadedModel,
    part: Part,
    perturbation: Perturbation | None,
    ledger: Ledger,
    on_scored: OnScored,
) -> _Asked:
    """Score this process's share of a part's questions into the ledger, under their hash."""
    settings = part.settings
    forms = [forms_of(question, perturbation, settings.seed) for question in part.questions]
    pairs = [_pairs(form, settings) for form in forms]
    groups, prompt_hash = _encode(pairs, loaded), _hash(pairs)
    length = max_length(loaded.model, loaded.tokenizer)
    score_share(
        Decoder(loaded.model),
        groups,
        ledger,
        prompt_hash,
        max_length=length,
        token_budget=settings.token_budget,
        on_scored=on_scored,
    )
    cut = [[request.is_cut(length) for request in group] for group in groups]
    return _Asked(forms, cut, prompt_hash)


def forms_of(question: Question, perturbation: Perturbation | None, seed: int) -> Forms:
    """A question's variants: as it is and, with a perturbation, with either token."""
    perturbed = perturbation.variants(question, seed) if perturbation else {}
    return {ORIGINAL: question, **perturbed}


def _pairs(forms: Forms, settings: Settings) -> list[tuple[str, str]]:
    """Context and continuation texts: one for each choice of each variant, in order."""
    before = few_shot_part(settings.subject, settings.few_shot, settings.score)
    return [
        (before + ask(form, settings.score), continuation)
        for form in forms.values()
        for continuation in continuations(form, settings.score)
    ]


def _encode(pairs: Sequence[Sequence[tuple[str, str]]], loaded: LoadedModel) -> list[list[Request]]:
    requests = iter(encode_pairs(list(chain.from_iterable(pairs)), loaded.tokenizer))
    return [[next(requests) for _ in group] for group in pairs]


def _answers(asked: _Asked, scores: Sequence[Sequence[float]]) -> dict[Variant, list[MCAnswer]]:
    answers: dict[Variant, list[MCAnswer]] = {variant: [] for variant in asked.forms[0]}
    for form, values, was_cut in zip(asked.forms, scores, asked.cut, strict=True):
        for number, (variant, question) in enumerate(form.items()):
            count = len(question.choices)  # equal in all variants
            own = slice(count * number, count * (number + 1))
            answer = MCAnswer(question, tuple(values[own]), any(was_cut[own]))
            answers[variant].append(answer)
    return answers


def _hash(pairs: Sequence[Sequence[tuple[str, str]]]) -> str:
    return hashlib.sha256(repr(pairs).encode()).hexdigest()


def _common_hash(hashes: Sequence[str]) -> str:
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _common(parts: Sequence[Part]) -> Settings:
    first = parts[0].settings
    if len(parts) == 1:
        return first
    examples = tuple(chain.from_iterable(part.settings.few_shot for part in parts))
    return replace(first, subject=None, few_shot=examples)
