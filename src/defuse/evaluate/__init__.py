"""Multiple-choice evaluation, with and without a token in the questions, and its statistics."""

from defuse.evaluate.answers import Evaluation, MCAnswer, Settings
from defuse.evaluate.evaluate import evaluate_questions
from defuse.evaluate.summary import (
    Contrast,
    VariantSummary,
    Vulnerability,
    contrast,
    contrasts,
    summarise,
    vulnerability,
)
from defuse.statistics import (
    Interval,
    Paired,
    bootstrap_mean,
    compare,
    mcnemar,
    newcombe_paired,
    wilson,
)

__all__ = [
    "Contrast",
    "Evaluation",
    "Interval",
    "MCAnswer",
    "Paired",
    "Settings",
    "VariantSummary",
    "Vulnerability",
    "bootstrap_mean",
    "compare",
    "contrast",
    "contrasts",
    "evaluate_questions",
    "mcnemar",
    "newcombe_paired",
    "summarise",
    "vulnerability",
    "wilson",
]
