"""Rows for lm-evaluation-harness: the questions of `defuse evaluate --suite`, perturbed likewise.

The task files name these functions as their `custom_dataset`.
"""

from collections.abc import Mapping, Sequence

from datasets import Dataset
from pydantic import BaseModel

from defuse.evaluate.evaluate import variants_of
from defuse.evaluate.tasks import SUITES, load_parts
from defuse.evaluate.tasks.load import load_subject
from defuse.evaluate.tasks.suite import PERTURBATION
from defuse.questions import (
    CONTROL_TOKEN,
    FORGET_TOKEN,
    ORIGINAL,
    Perturbation,
    Question,
    Variant,
)

Splits = dict[str, Dataset]


class Given(BaseModel):
    """The values that these tasks take from lm_eval's `--metadata`; other values are ignored.

    `data`: a folder, or another hub dataset. Control token i belongs to forget-token i.
    """

    data: str | None = None
    forget_tokens: tuple[str, ...] = PERTURBATION.tokens
    control_tokens: tuple[str, ...] = PERTURBATION.controls
    seed: int = 42


def mmlu_forget_token(subject: str, **metadata: object) -> Splits:
    """A subject of MMLU with a forget-token in place of one wrong choice."""
    return _splits("mmlu", subject, FORGET_TOKEN, metadata)


def mmlu_control_token(subject: str, **metadata: object) -> Splits:
    """The same questions with the control token in the same place."""
    return _splits("mmlu", subject, CONTROL_TOKEN, metadata)


def wmdp_retain(subject: str, **metadata: object) -> Splits:
    """Retain questions related to a topic of WMDP, as they are."""
    return _splits("wmdp-retain", subject, ORIGINAL, metadata)


def wmdp_retain_forget_token(subject: str, **metadata: object) -> Splits:
    """The same with a forget-token in place of one wrong choice."""
    return _splits("wmdp-retain", subject, FORGET_TOKEN, metadata)


def wmdp_retain_control_token(subject: str, **metadata: object) -> Splits:
    """The same with the control token in the same place."""
    return _splits("wmdp-retain", subject, CONTROL_TOKEN, metadata)


def _splits(suite: str, subject: str, variant: Variant, metadata: Mapping[str, object]) -> Splits:
    chosen, given = SUITES[suite].only([subject]), Given.model_validate(metadata)
    tokens = Perturbation(given.forget_tokens, "choice", given.control_tokens)
    (part,) = load_parts(chosen, given.data)
    variants = [variants_of(question, tokens, given.seed)[variant] for question in part.questions]
    # A folder without examples is enough for no shots.
    examples = load_subject(chosen, chosen.subjects[0], given.data, str(chosen.examples))
    return {"test": _dataset(variants), "dev": _dataset(examples)}


def _dataset(questions: Sequence[Question]) -> Dataset:
    rows = [
        {"id": q.id, "question": q.stem, "choices": list(q.choices), "answer": q.answer}
        for q in questions
    ]
    return Dataset.from_list(rows)
