"""Ask models questions, clean and with a stray token, and say how sure the figures are."""

from defuse.evaluate.results import Evaluation, Outcome, Settings
from defuse.evaluate.robustness import evaluate_questions
from defuse.evaluate.statistics import (
    Interval,
    Paired,
    bootstrap_mean,
    compare,
    mcnemar,
    newcombe_paired,
    wilson,
)
from defuse.evaluate.summary import (
    Contrast,
    VariantSummary,
    Vulnerability,
    contrast,
    contrasts,
    summarise,
    vulnerability,
)

__all__ = [
    "Contrast",
    "Evaluation",
    "Interval",
    "Outcome",
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
