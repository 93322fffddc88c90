"""Linear probe: is the right answer linearly readable from a layer's hidden states?

Logistic regression with an L2 penalty, by cross-fitting: every question is held out once.

Letters: multinomial, from the one state where a letter is predicted, (n, d), to the right letter.
Texts: binary, from the state at a choice's last token to whether it is the right one, (n, K, d); a
model that has read a statement marks whether it is true (Azaria & Mitchell 2304.13734; questions
with their answers: Li et al. 2306.03341). One probe serves all choices, since the place of a text
means nothing. The mean over a question's choices is subtracted from each of its states. A linear
probe ranks the choices as before, and what they share, which is most of a state, no longer scales
the features and with them the weight of the penalty.
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
    """Raise UsageError if scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise UsageError(f"lens.folds: a probe needs scikit-learn; {install_hint('attacks')}")


def mask(counts: Sequence[int]) -> Tensor:
    """Which of (questions, most choices) are choices, for questions with `counts` choices."""
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def alike(counts: Sequence[int]) -> list[list[int]]:
    """The places of the questions, grouped by their number of choices."""
    groups: dict[int, list[int]] = {}
    for place, count in enumerate(counts):
        groups.setdefault(count, []).append(place)
    return list(groups.values())


def features(states: Tensor, counts: Sequence[int]) -> Tensor:
    """Standardise hidden states (n, d) to (n, min(n, d)) features in float64.

    States (n, K, d), less each question's mean over its `counts` choices, give (n, K, min(rows, d))
    with as many rows as there are choices in all. No label plays a part. If there are more units
    than rows, the rows are rotated into the space they span: an L2 penalty does not change, and the
    fit is many times shorter.
    """
    states = states.double()
    if states.ndim == 2:
        return _standardised(states)
    real = mask(counts)
    centred = states - states.sum(dim=1, keepdim=True) / real.sum(dim=1)[:, None, None]
    found = _standardised(centred[real])
    padded = found.new_zeros(*real.shape, found.shape[1])
    padded[real] = found
    return padded


def _standardised(rows: Tensor) -> Tensor:
    spread = rows.std(dim=0, correction=0)
    scaled = (rows - rows.mean(dim=0)) / spread.where(spread > 0, 1.0)
    if scaled.shape[1] > scaled.shape[0]:
        left, values, _ = torch.linalg.svd(scaled, full_matrices=False)
        scaled = left * values
    return scaled


def deal(strata: Sequence[int], folds: int, draws: torch.Generator) -> list[int]:
    """Return the fold of each question; every stratum is dealt evenly, in drawn order."""
    place = torch.randperm(len(strata), generator=draws).tolist()
    order = sorted(range(len(strata)), key=lambda row: (strata[row], place[row]))
    fold = [0] * len(strata)
    for turn, row in enumerate(order):
        fold[row] = turn % folds
    return fold


def held_out(
    rows: Tensor,
    labels: Sequence[int],
    counts: Sequence[int],
    fold: Sequence[int],
    penalty: float,
) -> list[list[float]]:
    """log p of each question's choices by a probe that was fitted without its fold.

    Minimises Σ −log p(label) + penalty/2 · ‖W‖² over the `rows` of the other folds. For letters
    these are (n, features). For texts, (n, K, features), log softmax of a question's log-odds: if
    its rows were independent, the probability of each to be the right one, given that one is.
    """
    from sklearn.linear_model import LogisticRegression

    folds, targets, real = torch.tensor(fold), torch.tensor(labels), mask(counts)
    by_choice = rows.ndim == 3
    if by_choice:
        targets = one_hot(targets, real.shape[1])
    values = torch.full(real.shape, -torch.inf, dtype=torch.float64)
    for number in sorted(set(fold)):
        out = folds == number
        # Without rows of padding; for letters, each question is one row.
        fitted, held = (~out[:, None] & real, out[:, None] & real) if by_choice else (~out, out)
        probe = LogisticRegression(C=1 / penalty, max_iter=MOST_ITERATIONS)
        probe.fit(rows[fitted].numpy(), targets[fitted].numpy())
        scores = torch.as_tensor(probe.decision_function(rows[held].numpy()))
        if not by_choice and scores.ndim == 1:  # two letters: the log-odds of the second
            scores = torch.stack([torch.zeros_like(scores), scores], dim=1)
        values[held] = scores
    logprobs = values.masked_fill(~real, -torch.inf).log_softmax(dim=1).tolist()
    return [row[:count] for row, count in zip(logprobs, counts, strict=True)]
