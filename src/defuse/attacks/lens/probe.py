"""A linear probe: is the right letter linearly in a layer's hidden state?

Multinomial logistic regression with an L2 penalty, by cross-fitting: every question is held out
once.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from defuse.errors import UsageError

MOST_ITERATIONS = 2000


def check_installed() -> None:
    """Raise UsageError where scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise UsageError("lens.folds: a probe needs scikit-learn; pip install 'defuse[attacks]'")


def check_labels(name: str, labels: Sequence[int]) -> None:
    """Raise UsageError unless each of the four is right twice: held out, it is then still known."""
    fewest = min(labels.count(label) for label in range(4))
    if fewest < 2:
        raise UsageError(
            f"{name}: a letter is right in {fewest} of {len(labels)} questions, and a probe needs "
            "two of each; give more questions, or lens.folds 0 for no probe"
        )


def features(states: Tensor) -> Tensor:
    """(n, d) hidden states as (n, min(n, d)) standardised features in float64.

    No label plays a part. Where there are more units than questions, the rows are turned into the
    space they span: an L2 penalty does not see the turn, and the fit is many times shorter.
    """
    states = states.double()
    spread = states.std(dim=0, correction=0)
    scaled = (states - states.mean(dim=0)) / spread.where(spread > 0, 1.0)
    if scaled.shape[1] <= scaled.shape[0]:
        return scaled
    left, values, _ = torch.linalg.svd(scaled, full_matrices=False)
    return left * values


def deal(labels: Sequence[int], folds: int, draws: torch.Generator) -> list[int]:
    """The fold of each question, every label dealt out evenly, in drawn order."""
    place = torch.randperm(len(labels), generator=draws).tolist()
    order = sorted(range(len(labels)), key=lambda row: (labels[row], place[row]))
    fold = [0] * len(labels)
    for turn, row in enumerate(order):
        fold[row] = turn % folds
    return fold


def held_out(
    rows: Tensor, labels: Sequence[int], fold: Sequence[int], penalty: float
) -> list[list[float]]:
    """log p of the four letters (n, 4), each row by a probe that was fitted without its fold.

    Minimises Σ −log p(label) + penalty/2 · ‖W‖² over the other folds' `rows` (n, features).
    """
    from sklearn.linear_model import LogisticRegression

    folds, targets = torch.tensor(fold), torch.tensor(labels)
    values = torch.empty(len(labels), 4, dtype=torch.float64)
    for number in sorted(set(fold)):
        out = folds == number
        probe = LogisticRegression(C=1 / penalty, max_iter=MOST_ITERATIONS)
        probe.fit(rows[~out].numpy(), targets[~out].numpy())
        scores = torch.as_tensor(probe.decision_function(rows[out].numpy()))
        values[out] = scores.log_softmax(dim=1)
    return values.tolist()
