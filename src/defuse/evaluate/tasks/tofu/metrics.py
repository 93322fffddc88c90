"""TOFU's figures as pure functions of log-probabilities and texts.

Sources: Maini et al. 2401.06121, sections 2.2 and 3; TOFU = github.com/locuslab/tofu @8c49eee
(`utils.py`, `evaluate_util.py`); OU = github.com/locuslab/open-unlearning
(`src/evals/metrics/memorization.py`, `utils.py`). Log-probabilities here are means over an
answer's tokens (nats), so that `probability` is P(a|q)^(1/|a|). Both codes count the end-of-text
token as an answer's last.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

from scipy.stats import hmean, ks_2samp

from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError

Mean = Literal["arithmetic", "geometric"]


def probability(logprob: float) -> float:
    """P(a|q)^(1/|a|), for the forget and retain sets."""
    return math.exp(logprob)


def probability_among(logprob: float, wrong: Sequence[float]) -> float:
    """The answer's share of the probability of all answers, for real authors and world facts.

    p / (p + Σ p_wrong) with p = P^(1/|a|), as in TOFU and OU; the paper writes P without the root.
    """
    top = max(logprob, *wrong)
    parts = [math.exp(value - top) for value in (logprob, *wrong)]
    return parts[0] / sum(parts)


def truth_ratio(paraphrased: float, perturbed: Sequence[float], mean: Mean = "arithmetic") -> float:
    """R = mean of the wrong answers' P^(1/|a|) over that of the paraphrased right one.

    About 0 if the wrong answers are improbable, about 1 if the model cannot tell right from wrong.
    The paper (its equation 1), and TOFU's code for the model utility, use the arithmetic mean;
    TOFU's code for the forget quality, and OU everywhere, the geometric one.
    """
    if mean == "geometric":
        log_mean = math.fsum(perturbed) / len(perturbed)
    else:
        top = max(perturbed)
        total = math.fsum(math.exp(value - top) for value in perturbed)
        log_mean = top + math.log(total / len(perturbed))
    return math.exp(min(log_mean - paraphrased, 700.0))  # finite, as JSON has no infinity


def truth_retained(ratio: float) -> float:
    """max(0, 1 − R): how much the right answer is preferred, on the sets to retain."""
    return max(0.0, 1.0 - ratio)


def truth_forgotten(ratio: float) -> float:
    """min(R, 1/R): 1 if right and wrong answers are equally probable, on the forget set.

    As in TOFU's code and OU; the paper reports the forget set's R itself.
    """
    return min(ratio, 1.0 / ratio) if ratio > 0 else 0.0


def rouge_l_recall(answer: str, written: str) -> float:
    """The longest common subsequence's share of the answer's stemmed words (rouge_score)."""
    return _rouge_scorer().score(answer, written)["rougeL"].recall


def check_rouge() -> None:
    """Raise UsageError if the package rouge-score is missing."""
    if find_spec("rouge_score") is None:
        raise UsageError(f"tofu: needs the package rouge-score; {install_hint('tofu')}")


@dataclass(frozen=True)
class ForgetQuality:
    """The two-sample Kolmogorov-Smirnov test that truth ratios come from one distribution.

    `p_value` is TOFU's forget quality: small if the model differs from one that never saw the
    forget set. `statistic`: the largest distance between the two distribution functions.
    """

    p_value: float
    statistic: float


def forget_quality(ratios: Sequence[float], retain_ratios: Sequence[float]) -> ForgetQuality:
    """Compare truth ratios on the forget set with those of the retrained model.

    TOFU and OU compare reciprocals of R: the same test, because it depends on ranks only.
    """
    test = ks_2samp(ratios, retain_ratios)
    return ForgetQuality(float(test.pvalue), float(test.statistic))  # type: ignore[attr-defined]


def model_utility(figures: Sequence[float]) -> float:
    """The harmonic mean of nine: probability, ROUGE-L and truth on the three sets to retain.

    0 if any of them is 0.
    """
    return float(hmean(figures))


@cache
def _rouge_scorer():  # noqa: ANN202 (an optional package's)
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
