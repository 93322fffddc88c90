"""Ask a model questions, clean and with a stray token in them."""

import hashlib
import time
from collections.abc import Sequence
from itertools import chain
from math import isfinite

from defuse.decoder import Decoder
from defuse.errors import UsageError
from defuse.evaluate.encode import encode_pairs
from defuse.evaluate.results import Evaluation, Outcome, Settings
from defuse.evaluate.scorer import OnScored, max_length, score
from defuse.evaluate.trees import Request
from defuse.models import LoadedModel
from defuse.questions import Perturbation, Question, Variant, ask, continuations, few_shot_part

Forms = dict[Variant, Question]


def evaluate_questions(
    loaded: LoadedModel,
    questions: Sequence[Question],
    settings: Settings | None = None,
    perturbation: Perturbation | None = None,
    *,
    on_scored: OnScored = lambda _: None,
) -> Evaluation:
    """Ask `loaded` every question, and with a perturbation also its perturbed forms.

    All forms of a question are scored in one row that computes their common tokens once; what all
    questions begin with (description, examples) is computed once for all. `on_scored` is told how
    many questions each batch has finished. Raises UsageError for no questions, for an architecture
    `Decoder` does not know, and for a model whose log-probabilities are not finite.
    """
    settings = settings or Settings()
    if not questions:
        raise UsageError("questions: there are none; give at least one")
    start = time.perf_counter()
    decoder = Decoder(loaded.model)
    forms = [forms_of(question, perturbation, settings.seed) for question in questions]
    pairs = [_pairs(form, settings) for form in forms]
    groups = _encode(pairs, loaded)
    length = max_length(loaded.model, loaded.tokenizer)
    scores = score(
        decoder, groups, max_length=length, token_budget=settings.token_budget, on_scored=on_scored
    )
    _refuse_not_finite(loaded.name, scores)
    cut = [[request.is_cut(length) for request in group] for group in groups]
    return Evaluation(
        model=loaded.name,
        settings=settings,
        perturbation=perturbation,
        outcomes=_outcomes(forms, scores, cut),
        prompt_hash=_hash(pairs),
        seconds=time.perf_counter() - start,
    )


def forms_of(question: Question, perturbation: Perturbation | None, seed: int) -> Forms:
    """The question as it is ("clean") and, with a perturbation, "forget" and "control"."""
    perturbed = perturbation.variants(question, seed) if perturbation else {}
    return {"clean": question, **perturbed}


def _pairs(forms: Forms, settings: Settings) -> list[tuple[str, str]]:
    """Context and continuation texts: four for each form, in order."""
    before = few_shot_part(settings.subject, settings.few_shot, settings.score)
    return [
        (before + ask(form, settings.score), continuation)
        for form in forms.values()
        for continuation in continuations(form, settings.score)
    ]


def _encode(pairs: Sequence[Sequence[tuple[str, str]]], loaded: LoadedModel) -> list[list[Request]]:
    requests = iter(encode_pairs(list(chain.from_iterable(pairs)), loaded.tokenizer))
    return [[next(requests) for _ in group] for group in pairs]


def _outcomes(
    forms: Sequence[Forms], scores: Sequence[Sequence[float]], cut: Sequence[Sequence[bool]]
) -> dict[Variant, list[Outcome]]:
    outcomes: dict[Variant, list[Outcome]] = {variant: [] for variant in forms[0]}
    for form, values, was_cut in zip(forms, scores, cut, strict=True):
        for number, (variant, question) in enumerate(form.items()):
            four = slice(4 * number, 4 * number + 4)
            outcome = Outcome(question, tuple(values[four]), any(was_cut[four]))
            outcomes[variant].append(outcome)
    return outcomes


def _hash(pairs: Sequence[Sequence[tuple[str, str]]]) -> str:
    return hashlib.sha256(repr(pairs).encode()).hexdigest()


def _refuse_not_finite(name: str, scores: Sequence[Sequence[float]]) -> None:
    if not all(isfinite(value) for values in scores for value in values):
        raise UsageError(
            f"model: {name} gives log-probabilities that are not finite; try --dtype float32, or "
            "check its weights"
        )
