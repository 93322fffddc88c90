"""AdamW with ε on either side of the bias correction, and its schedule."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from defuse import RMU, Topic, Training, Unlearning, unlearn
from defuse.unlearning.optimiser import Optimiser, make_adamw, take_step
from defuse.utils.errors import UsageError


def published_steps(gradients: list[list[float]], lr: float, eps: float) -> list[float]:
    """AdamW of transformers 4.46.3 by its formula, in float64: ε is added to the uncorrected √v."""
    size = len(gradients[0])
    weight, m, v = [0.0] * size, [0.0] * size, [0.0] * size
    for t, gradient in enumerate(gradients, start=1):
        for i, g in enumerate(gradient):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            rate = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            weight[i] -= rate * m[i] / (math.sqrt(v[i]) + eps)
    return weight


def our_steps(gradients: list[list[float]], lr: float, optimiser: Optimiser) -> list[float]:
    weight = torch.zeros(len(gradients[0]), dtype=torch.float64, requires_grad=True)
    adamw = make_adamw([weight], lr)
    for step, gradient in enumerate(gradients, start=1):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        take_step(adamw, optimiser, step, lr)
        assert weight.grad is None
    return weight.tolist()


@given(
    st.lists(st.lists(st.floats(-1e-3, 1e-3), min_size=3, max_size=3), min_size=1, max_size=8),
    st.sampled_from([1e-6, 1e-8]),
)
def test_eps_before_the_correction_is_the_published_step(
    gradients: list[list[float]], eps: float
) -> None:
    found = our_steps(gradients, 5e-5, Optimiser(eps, eps_before_correction=True))
    assert found == pytest.approx(published_steps(gradients, 5e-5, eps), rel=1e-9, abs=1e-15)


def test_by_default_it_is_pytorch_s() -> None:
    gradients = [[1e-6, -2e-3], [3e-6, 1e-3]]
    weight = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    plain = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        plain.step()
    assert our_steps(gradients, 1e-3, Optimiser()) == pytest.approx(weight.tolist(), rel=1e-9)


@pytest.mark.parametrize(("step", "share"), [(1, 0.03), (500, 0.39)])
def test_small_gradients_move_weights_less_in_the_published_code(step: int, share: float) -> None:
    """At constant gradients of 1e-6; the last step alone."""

    def last(optimiser: Optimiser) -> float:
        gradients = [[1e-6]] * step
        before = our_steps(gradients[:-1], 1.0, optimiser)[0] if step > 1 else 0.0
        return our_steps(gradients, 1.0, optimiser)[0] - before

    published = Optimiser(1e-6, eps_before_correction=True)
    assert last(published) / last(Optimiser()) == pytest.approx(share, abs=0.005)


def test_an_impossible_eps_is_refused() -> None:
    with pytest.raises(UsageError, match=r"optimiser.*eps"):
        Optimiser(eps=0.0)


def test_a_linear_schedule_falls_from_the_whole_rate_towards_nothing() -> None:
    linear = Optimiser(schedule="linear")
    assert [linear.rate_share(step, 4) for step in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]
    assert [Optimiser().rate_share(step, 4) for step in (1, 4)] == [1.0, 1.0]


def test_the_last_step_of_a_linear_schedule_is_smaller_by_its_share(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    """With a rate so small that gradients hardly change, AdamW moves a weight by the rate."""

    def moved(schedule: Literal["constant", "linear"], steps: int) -> torch.Tensor:
        training = Training(steps, learning_rate=1e-7, optimiser=Optimiser(schedule=schedule))
        topic = Topic("t", ["The cat sat."], ["The dog ran."], coefficient=5.0, weight=0.0)
        unlearning = Unlearning(RMU(), layer=1)
        result = unlearn(tiny_llama.double(), tiny_tokenizer, [topic], unlearning, training)
        name, changed = next(iter(result.changed.items()))
        return (changed - tiny_llama.get_parameter(name)).detach()

    ratio = moved("linear", 4).abs().sum() / moved("constant", 4).abs().sum()
    assert ratio.item() == pytest.approx((1 + 0.75 + 0.5 + 0.25) / 4, rel=1e-2)
