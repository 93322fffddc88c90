"""A linear probe: is the right answer linearly in a layer's hidden states?

Logistic regression with an L2 penalty, by cross-fitting: every question is held out once.

Letters: multinomial, from the one state where a letter is predicted, (n, d), to the right letter.
Texts: binary, from the state at a choice's last token to whether it is the right one, (n, 4, d); a
model that has read a statement marks whether it is true (Azaria & Mitchell 2304.13734; of questions
with their answers Li et al. 2306.03341). One probe for all four: a text's place means nothing. Each
state is taken less the mean over its question's four. What a linear probe ranks stays as it is, and
what they share, which is most of a state, plays no part in a feature's scale, nor so in how much
the penalty weighs.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError

MOST_ITERATIONS = 2000


def check_installed() -> None:
    """Raise UsageError where scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise UsageError(f"lens.folds: a probe needs scikit-learn; {install_hint('attacks')}")


def features(states: Tensor) -> Tensor:
    """(n, d) hidden states as (n, min(n, d)) standardised features in float64; (n, 4, d), less each
    question's mean, as (n, 4, min(4n, d)).

    No label plays a part. Where there are more units than rows, these are turned into the space
    they span: an L2 penalty does not see the turn, and the fit is many times shorter.
    """
    states = states.double()
    if states.ndim == 3:
        states = states - states.mean(dim=1, keepdim=True)
    rows = states.flatten(end_dim=-2)
    spread = rows.std(dim=0, correction=0)
    scaled = (rows - rows.mean(dim=0)) / spread.where(spread > 0, 1.0)
    if scaled.shape[1] > scaled.shape[0]:
        left, values, _ = torch.linalg.svd(scaled, full_matrices=False)
        scaled = left * values
    return scaled.view(*states.shape[:-1], -1)


def deal(strata: Sequence[int], folds: int, draws: torch.Generator) -> list[int]:
    """The fold of each question, every stratum dealt out evenly, in drawn order."""
    place = torch.randperm(len(strata), generator=draws).tolist()
    order = sorted(range(len(strata)), key=lambda row: (strata[row], place[row]))
    fold = [0] * len(strata)
    for turn, row in enumerate(order):
        fold[row] = turn % folds
    return fold


def held_out(
    rows: Tensor, labels: Sequence[int], fold: Sequence[int], penalty: float
) -> list[list[float]]:
    """log p of the four (n, 4), each question by a probe that was fitted without its fold.

    Minimises Σ −log p(label) + penalty/2 · ‖W‖² over the other folds' `rows`. Of letters these are
    (n, features). Of texts, (n, 4, features), the four's log-odds s give log softmax(s): if rows
    were independent, the probability of each to be the one that is right, given that one is.
    """
    from sklearn.linear_model import LogisticRegression

    folds, targets = torch.tensor(fold), torch.tensor(labels)
    if rows.ndim == 3:
        targets = one_hot(targets, 4)
    values = torch.empty(len(labels), 4, dtype=torch.float64)
    for number in sorted(set(fold)):
        out = folds == number
        probe = LogisticRegression(C=1 / penalty, max_iter=MOST_ITERATIONS)
        probe.fit(rows[~out].flatten(end_dim=-2).numpy(), targets[~out].flatten().numpy())
        scores = torch.as_tensor(probe.decision_function(rows[out].flatten(end_dim=-2).numpy()))
        values[out] = scores.view(-1, 4).log_softmax(dim=1)
    return values.tolist()
