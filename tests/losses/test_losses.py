"""Every formula against numbers derived by hand and against independent float64 code."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defuse.losses.hidden import hidden_mse, mean_norm
from defuse.losses.sequences import SequenceLogProbs, dpo, npo, simnpo
from defuse.losses.tokens import next_token_log_probs, token_kl, token_logit_mse
from defuse.models.lm_head import tokenwise
from defuse.unlearning.hidden_statistics import hidden_statistics

SHAPES = st.tuples(st.integers(1, 4), st.integers(2, 6), st.integers(1, 5))


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def ragged_mask(rows: int, time: int, seed: int) -> Tensor:
    """Right-padded rows of 1 to `time` tokens."""
    lengths = torch.randint(1, time + 1, (rows, 1), generator=rng(seed))
    return torch.arange(time)[None] < lengths


def test_hidden_mse_by_hand() -> None:
    """Three counted tokens of two units: squares 1+0, 4+4 and 9+1 sum to 19; 19 / (3·2)."""
    hidden = torch.tensor([[[1.0, 0.0], [2.0, 2.0]], [[3.0, -1.0], [70.0, 70.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert hidden_mse(hidden, torch.zeros(2), mask).item() == pytest.approx(19 / 6)


@given(SHAPES, st.integers(0, 999))
def test_hidden_mse_is_the_mean_over_counted_tokens_and_units(
    shape: tuple[int, int, int], seed: int
) -> None:
    rows, time, units = shape
    hidden, target = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    mask = ragged_mask(rows, time, seed)
    total = sum(
        (hidden[b, t, u] - target[b, t, u]).item() ** 2
        for b in range(rows)
        for t in range(time)
        for u in range(units)
        if mask[b, t]
    )
    expected = total / (mask.sum().item() * units)
    assert hidden_mse(hidden, target, mask).item() == pytest.approx(expected, rel=1e-12)


@given(SHAPES, st.integers(0, 999))
def test_hidden_mse_never_sees_padding(shape: tuple[int, int, int], seed: int) -> None:
    hidden, mask = random(*shape, seed=seed), ragged_mask(shape[0], shape[1], seed)
    other = hidden.masked_fill(~mask[..., None], 1e9)
    target = torch.zeros(shape[2])
    assert torch.equal(hidden_mse(hidden, target, mask), hidden_mse(other, target, mask))


def test_losses_between_equal_models_are_zero() -> None:
    hidden, logits = random(2, 3, 4, seed=0), random(5, 7, seed=1)
    assert hidden_mse(hidden, hidden, torch.ones(2, 3).bool()).item() == 0
    assert token_logit_mse(logits, logits).abs().max().item() == 0
    assert token_kl(logits, logits + 3.0).abs().max().item() < 1e-15  # a shift changes no p


def test_token_kl_by_hand() -> None:
    """p0 = (1/4, 3/4), p = (1/2, 1/2): KL(p0 ‖ p) = ¼·log ½ + ¾·log 3/2."""
    p, p0 = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert token_kl(p.log(), p0.log()).item() == pytest.approx(expected, rel=1e-6)


def test_token_logit_mse_by_hand() -> None:
    """log p - log p0 = (log 2, log 2/3); squares averaged over the vocabulary of two."""
    p, p0 = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    expected = (math.log(2) ** 2 + math.log(2 / 3) ** 2) / 2
    assert token_logit_mse(p.log(), p0.log()).item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 999))
def test_logit_losses_equal_sums_over_the_vocabulary(tokens: int, vocab: int, seed: int) -> None:
    logits, reference = random(tokens, vocab, seed=seed), random(tokens, vocab, seed=seed + 1)
    p, p0 = (
        [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in each.tolist()]
        for each in (logits, reference)
    )
    pairs = [list(zip(*rows, strict=True)) for rows in zip(p, p0, strict=True)]
    kl = [sum(b * math.log(b / a) for a, b in row) for row in pairs]
    mse = [sum(math.log(a / b) ** 2 for a, b in row) / vocab for row in pairs]
    assert token_kl(logits, reference).tolist() == pytest.approx(kl, rel=1e-9, abs=1e-12)
    assert token_logit_mse(logits, reference).tolist() == pytest.approx(mse, rel=1e-9)


def test_sequence_scores_by_hand() -> None:
    """Log-probabilities -2 over 1 token and -12 over 4: sums, means, and one long sequence."""
    pair = SequenceLogProbs(torch.tensor([-2.0, -12.0]), torch.tensor([1.0, 4.0]))
    assert pair.score("sum", "sequence").tolist() == [-2.0, -12.0]
    assert pair.score("mean", "sequence").tolist() == [-2.0, -3.0]
    assert pair.score("mean", "batch").tolist() == pytest.approx([-14 / 5])
    assert pair.score("sum", "batch").tolist() == [-14.0]


def test_preference_losses_by_hand() -> None:
    """σ(0) = ½ gives (2/β)·log 2; at β·ratio = -log 3 the sigmoid of its negative is ¾."""
    beta = 0.5
    assert npo(torch.zeros(3), beta).item() == pytest.approx(4 * math.log(2))
    ratio = torch.tensor([-math.log(3) / beta])
    assert npo(ratio, beta).item() == pytest.approx(-4 * math.log(3 / 4))
    assert simnpo(ratio, beta, 0.0).item() == pytest.approx(-4 * math.log(3 / 4))
    assert simnpo(ratio, beta, math.log(3)).item() == pytest.approx(4 * math.log(2))
    assert dpo(torch.zeros(1), ratio, beta).item() == pytest.approx(-4 * math.log(3 / 4))
    assert dpo(ratio, ratio, beta).item() == pytest.approx(4 * math.log(2))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=5), st.floats(0.05, 2))
def test_preference_losses_equal_the_formulas(ratios: list[float], beta: float) -> None:
    def cost(x: float) -> float:
        return 2 / beta * math.log1p(math.exp(-x))

    ratio = torch.tensor(ratios, dtype=torch.float64)
    mean = sum(cost(-beta * r) for r in ratios) / len(ratios)
    assert npo(ratio, beta).item() == pytest.approx(mean, rel=1e-9)
    shifted = sum(cost(-beta * r - 0.3) for r in ratios) / len(ratios)
    assert simnpo(ratio, beta, 0.3).item() == pytest.approx(shifted, rel=1e-9)
    against = sum(cost(beta * (1.5 - r)) for r in ratios) / len(ratios)
    assert dpo(torch.full_like(ratio, 1.5), ratio, beta).item() == pytest.approx(against, rel=1e-9)


def test_mean_norm_is_per_sequence_over_counted_tokens() -> None:
    hidden = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[6.0, 8.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert mean_norm(hidden, mask).tolist() == pytest.approx([3.0, 10.0])


@given(SHAPES, st.integers(0, 999))
def test_hidden_statistics_equal_numpy_over_all_counted_tokens(
    shape: tuple[int, int, int], seed: int
) -> None:
    batches = [
        (100 + random(*shape, seed=seed + i), ragged_mask(shape[0], shape[1], seed + i))
        for i in range(3)
    ]
    tokens = torch.cat([hidden[mask] for hidden, mask in batches]).numpy()
    found = hidden_statistics(batches)
    assert found.variance == pytest.approx(tokens.var(axis=0).mean(), rel=1e-6, abs=1e-9)
    assert found.mean_norm == pytest.approx(((tokens**2).sum(1) ** 0.5).mean())


@pytest.mark.parametrize("chunk_bytes", [1, 100, 10**6])
def test_chunked_scores_have_the_values_and_gradients_of_whole_ones(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defuse.models.lm_head.CHUNK_BYTES", chunk_bytes)
    hidden, head = random(7, 3, seed=0).requires_grad_(), random(3, 11, seed=1)
    labels = torch.arange(7)
    weights = random(7, seed=2)  # unequal, so that a wrong row's gradient shows
    whole = next_token_log_probs(hidden @ head, labels)
    (expected,) = torch.autograd.grad((weights * whole).sum(), hidden)
    parts = tokenwise(lambda h, s: next_token_log_probs(h @ head, labels[s]), hidden, 11)
    (gradient,) = torch.autograd.grad((weights * parts).sum(), hidden)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        again = tokenwise(lambda h, s: next_token_log_probs(h @ head, labels[s]), hidden, 11)
    torch.testing.assert_close(again, whole)


def test_half_precision_losses_are_computed_in_float32() -> None:
    hidden = torch.full((1, 300, 1), 1.0).bfloat16()
    target = torch.full((1, 300, 1), 1.0 + 2**-7).bfloat16()
    loss = hidden_mse(hidden, target, torch.ones(1, 300).bool())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2**-14)
