"""RNA's noise: its law, its independence of everything but (seed, step, text)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defuse.unlearning.noise import GaussianNoise, add_noise
from defuse.utils.errors import UsageError

ITEMS = [("retain", 0), ("retain", 1)]


def noised(std: float, *, seed: int = 0, step: int = 0, time: int = 6) -> torch.Tensor:
    spans = [slice(0, 4), slice(0, 6)]
    return add_noise(torch.zeros(2, time, 3), std, spans, seed, step, ITEMS)


def test_std_zero_changes_no_bit() -> None:
    hidden = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(add_noise(hidden, 0.0, [slice(0, 6)] * 2, 7, 3, ITEMS), hidden)


def test_the_input_is_left_as_it_is() -> None:
    hidden = torch.zeros(2, 6, 3)
    add_noise(hidden, 1.0, [slice(0, 6)] * 2, 0, 0, ITEMS)
    assert torch.equal(hidden, torch.zeros(2, 6, 3))


@pytest.mark.parametrize("std", [0.03, 2.0])
def test_mean_and_variance_are_those_of_the_normal_law(std: float) -> None:
    """With n = 400,000 draws, the mean lies within 5 std/√n and the variance within 5 ν·√(2/n)."""
    n = 400_000
    draw = add_noise(torch.zeros(1, n // 8, 8), std, [slice(0, n // 8)], 1, 0, ["text"])
    assert abs(draw.mean().item()) < 5 * std / math.sqrt(n)
    assert abs(draw.var().item() - std**2) < 5 * std**2 * math.sqrt(2 / n)
    within = (draw.abs() < std).float().mean().item()
    assert within == pytest.approx(0.6827, abs=0.005)  # normal, not only of that variance


def test_fresh_for_every_token_step_text_and_seed() -> None:
    base = noised(1.0)
    real = torch.cat([base[0, :4], base[1]])
    assert real.unique().numel() == real.numel()
    for other in (noised(1.0, step=1), noised(1.0, seed=1)):
        assert (other[1] != base[1]).all()
    assert torch.equal(noised(1.0), base)


def test_padding_gets_none_and_changes_none() -> None:
    base, wider = noised(1.0), noised(1.0, time=9)
    assert torch.equal(base[0, 4:], torch.zeros(2, 3))
    assert torch.equal(wider[:, :6], base)


def test_a_text_draws_the_same_wherever_it_stands_in_the_batch() -> None:
    """So that splitting a batch over processes changes nothing."""
    alone = add_noise(torch.zeros(1, 6, 3), 1.0, [slice(0, 6)], 0, 0, ITEMS[1:])
    assert torch.equal(alone[0], noised(1.0)[1])


def test_half_precision_keeps_small_noise() -> None:
    hidden = torch.full((1, 50, 3), 100.0).bfloat16()
    noisy = add_noise(hidden, 0.01, [slice(0, 50)], 0, 0, ["text"])
    assert noisy.std().item() == pytest.approx(0.01, rel=0.3)


@given(st.floats(0, 1e3), st.floats(1e-6, 1e3))
def test_std_variance_and_multiples_mean_the_same(std: float, hidden_std: float) -> None:
    assert GaussianNoise(std=std).resolve_std(hidden_std) == std
    assert GaussianNoise(variance=std**2).resolve_std(hidden_std) == pytest.approx(std)
    factor = f"{std:.6f}x"
    expected = float(f"{std:.6f}") * hidden_std
    assert GaussianNoise(std=factor).resolve_std(hidden_std) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("std", "variance"),
    [
        (None, None),
        (0.1, 0.01),
        (-0.1, None),
        (math.nan, None),
        (math.inf, None),
        (None, -1.0),
        ("0.1y", None),
        ("-1x", None),
        ("x", None),
        ("nanx", None),
    ],
)
def test_bad_noise_is_refused_in_a_sentence(std: float | str | None, variance: float) -> None:
    with pytest.raises(UsageError, match=r"^noise"):
        GaussianNoise(std=std, variance=variance)
