"""The evaluation of a model on questions: as they are, and with tokens put into them."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from defuse.evaluate.answers import Evaluation, MCAnswer, Part, Settings, read_row
from defuse.evaluate.encoding import encode_rows, prompt_pairs
from defuse.evaluate.loglikelihood import max_length, score_share
from defuse.evaluate.resume import BatchScores
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Perturbation, Question, Variant, given_questions
from defuse.utils.errors import UsageError, require
from defuse.utils.progress import SILENT, Progress

Variants = dict[Variant, Question]


@dataclass(frozen=True)
class _Asked:
    """A part's questions in all variants, and whether each prompt was cut on the left."""

    questions: list[Variants]
    cut: list[list[bool]]
    prompt_hash: str


def evaluate_questions(
    loaded: LoadedModel,
    questions: Sequence[Question],
    settings: Settings | None = None,
    perturbation: Perturbation | None = None,
    *,
    progress: Progress = SILENT,
    scores: BatchScores | None = None,
) -> Evaluation:
    """Evaluate `loaded` on every question and, with a perturbation, on its perturbed variants.

    All variants of a question are scored in one row, which computes their common tokens once. The
    prefix of all questions (description, examples) is computed once for all. `progress` advances by
    the questions of each batch; the caller starts its stage. `scores` keeps what is scored, and
    shares it among processes. Raises UsageError for no questions, for an architecture that
    `Decoder` does not support, and for a model whose log-probabilities are not finite.
    """
    part = Part(given_questions(questions, "questions"), settings or Settings())
    is_one = isinstance(perturbation, Perturbation | None)
    require(is_one, "perturbation", perturbation, "is no Perturbation; give one")
    return evaluate_parts(loaded, [part], perturbation, progress=progress, scores=scores)


def evaluate_parts(
    loaded: LoadedModel,
    parts: Sequence[Part],
    perturbation: Perturbation | None = None,
    *,
    progress: Progress = SILENT,
    scores: BatchScores | None = None,
) -> Evaluation:
    """Evaluate several lists of questions, each with its own settings, as `evaluate_questions`."""
    if not parts or not all(part.questions for part in parts):
        raise UsageError("questions: there are none; give at least one")
    start = time.perf_counter()
    scores = scores or BatchScores()
    asked = [_ask(loaded, part, perturbation, scores, progress) for part in parts]
    scores.exchange()
    answers = [_answers(each, scores.of(each.prompt_hash)) for each in asked]
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
    scores: BatchScores,
    progress: Progress,
) -> _Asked:
    """Score this process's share of a part's questions, in a list named after their hash."""
    settings = part.settings
    asked = [variants_of(question, perturbation, settings.seed) for question in part.questions]
    pairs = [prompt_pairs(variants.values(), settings) for variants in asked]
    groups, prompt_hash = encode_rows(pairs, loaded.tokenizer), _hash(pairs)
    length = max_length(loaded.model, loaded.tokenizer)
    score_share(
        Decoder(loaded.model),
        groups,
        scores,
        prompt_hash,
        max_length=length,
        token_budget=settings.token_budget,
        progress=progress,
    )
    cut = [[pair.is_cut(length) for pair in group] for group in groups]
    return _Asked(asked, cut, prompt_hash)


def variants_of(question: Question, perturbation: Perturbation | None, seed: int) -> Variants:
    """A question's variants: as it is and, with a perturbation, with either token."""
    perturbed = perturbation.variants(question, seed) if perturbation else {}
    return {ORIGINAL: question, **perturbed}


def _answers(asked: _Asked, scores: Sequence[Sequence[float]]) -> dict[Variant, list[MCAnswer]]:
    answers: dict[Variant, list[MCAnswer]] = {variant: [] for variant in asked.questions[0]}
    for variants, values, was_cut in zip(asked.questions, scores, asked.cut, strict=True):
        own = read_row(variants.values(), values, was_cut)
        for variant, answer in zip(variants, own, strict=True):
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
