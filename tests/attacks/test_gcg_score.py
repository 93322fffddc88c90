"""Losses behind kept keys and values are those of whole texts; the gradient is the loss's slope."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from defuse.attacks.gcg.score import (
    BUSY,
    KEYS,
    Budget,
    LetterTarget,
    Problem,
    Scorer,
    Target,
    TextTarget,
)
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from tests.helpers.architectures import CONFIGS, tiny_model

VOCABULARY, LENGTH = 61, 5
LETTERS = LetterTarget((7, 11, 13, 17), 2, "break")
PROBLEMS = (
    Problem((1, 5, 9, 21), (30, 31, 32), LETTERS),
    Problem((1, 8, 3), (4, 40, 41, 42, 43, 44), TextTarget((12, 50, 19))),
    Problem((1, 60, 2, 14, 15, 16), (22,), LetterTarget((7, 11, 13, 17), 0, "recover")),
)
# The others' norms are taken in float32 whatever the model's type is.
EXACT = ("gpt2", "gpt_neox")


def scorer(model: PreTrainedModel, problems: tuple[Problem, ...], tokens: int = 24) -> Scorer:
    return Scorer(Decoder(model), problems, Budget(tokens))


def suffixes(count: int, seed: int = 0) -> tuple[list[int], Tensor]:
    """A parent, and candidates with one to three other tokens, or none."""
    rng = torch.Generator().manual_seed(seed)
    parent = torch.randint(3, VOCABULARY, (LENGTH,), generator=rng)
    candidates = parent.repeat(count, 1)
    for number in range(1, count):
        places = torch.randperm(LENGTH, generator=rng)[: 1 + number % 3]
        candidates[number, places] = torch.randint(3, VOCABULARY, places.shape, generator=rng)
    return parent.tolist(), candidates


def plain_loss(target: Target, logits: Tensor) -> tuple[float, float]:
    """Loss and lead by (time, vocabulary) logits, written out."""
    if isinstance(target, TextTarget):
        last = logits[-len(target.ids) :]
        loss = -sum(
            float(row.log_softmax(-1)[token]) for row, token in zip(last, target.ids, strict=True)
        ) / len(target.ids)
        gaps = [
            float(row[token] - torch.cat([row[:token], row[token + 1 :]]).max())
            for row, token in zip(last, target.ids, strict=True)
        ]
        return loss, min(gaps)
    assert isinstance(target, LetterTarget)
    four = [float(logits[-1, letter]) for letter in target.letters]
    total = float(torch.tensor(four, dtype=torch.float64).logsumexp(0))
    right = four.pop(target.answer)
    sign = 1 if target.aim == "break" else -1
    return sign * (right - total), sign * (max(four) - right)


@pytest.mark.parametrize(
    ("kind", "attention"), [*((kind, None) for kind in CONFIGS), ("llama", "eager")]
)
def test_losses_are_those_of_whole_texts(kind: str, attention: str | None) -> None:
    model = tiny_model(kind, attention=attention, dtype=torch.float64)
    parent, candidates = suffixes(12)
    losses, leads = scorer(model, PROBLEMS).judge(parent, candidates)
    tolerance = 1e-9 if kind in EXACT else 1e-5
    for row, problem in enumerate(PROBLEMS):
        for column, suffix in enumerate(candidates.tolist()):
            ids = [*problem.before, *suffix, *problem.after, *problem.target.read]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            expected = plain_loss(problem.target, logits)
            found = float(losses[row, column]), float(leads[row, column])
            assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_gradient_is_that_of_the_one_hot_matrix(kind: str) -> None:
    """Against finite differences of whole texts, where all is computed in float64; else autograd's,
    through whole texts too."""
    model = tiny_model(kind, dtype=torch.float64)
    suffix, _ = suffixes(1)
    tokens = torch.tensor([3, 60, 10, 25, *suffix])
    with frozen_model(model):
        found = scorer(model, PROBLEMS).gradient(suffix, tokens)
        table = model.get_input_embeddings()(torch.arange(VOCABULARY))
        hot = torch.nn.functional.one_hot(torch.tensor(suffix), VOCABULARY).double()

        def mean_loss(hot: Tensor) -> Tensor:
            losses = []
            for problem in PROBLEMS:
                before, after = list(problem.before), [*problem.after, *problem.target.read]
                vectors = torch.cat([table[before], hot @ table, table[after]])[None]
                logits = model(inputs_embeds=vectors).logits
                logits = logits[:, -1 - len(problem.target.read) :]
                losses.append(problem.target.judge(logits)[0][0])
            return torch.stack(losses).mean()

        if kind not in EXACT:
            (expected,) = torch.autograd.grad(mean_loss(hot.requires_grad_()), hot)
            assert torch.allclose(found, expected[:, tokens], rtol=1e-4, atol=1e-5)
            return
        for place in range(LENGTH):
            for column, token in enumerate(tokens.tolist()):
                step = torch.zeros_like(hot)
                step[place, token] = 1e-5
                slope = (mean_loss(hot + step) - mean_loss(hot - step)) / 2e-5
                assert float(found[place, column]) == pytest.approx(float(slope), abs=1e-8)


def test_no_parameter_gets_a_gradient() -> None:
    model = tiny_model("llama")
    suffix, _ = suffixes(1)
    with frozen_model(model):
        scorer(model, PROBLEMS).gradient(suffix, torch.arange(VOCABULARY))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_that_does_not_fit_is_halved_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    parent, candidates = suffixes(20)
    expected = scorer(model, PROBLEMS).judge(parent, candidates)
    small = scorer(model, PROBLEMS, tokens=10_000)
    judge, sizes = small._judge_batch, []

    def judge_few(target: Target, rows: Tensor, *rest: object) -> Tensor:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("no more than 3 rows")
        return judge(target, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(small, "_judge_batch", judge_few)
    for found, wanted in zip(small.judge(parent, candidates), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    assert sizes[0] == 20
    assert small.budget.tokens < 50
    sizes.clear()
    small.judge(parent, candidates)
    assert max(sizes) <= 7  # shorter rows fit more of them


@given(
    st.integers(1, 3000),
    st.lists(st.integers(0, 9), min_size=1, max_size=80),
    st.integers(10, 40),
    st.integers(1, 3000),
)
def test_a_batch_is_bounded_and_ends_where_rows_begin_later(
    tokens: int, drawn: list[int], length: int, prefix: int
) -> None:
    begins, budget = sorted(drawn), Budget(tokens)
    count, time = budget.rows(begins, length, prefix), length - begins[0]
    assert 1 <= count <= len(begins)
    if count > 1:
        assert count * time <= tokens
        assert count * (prefix + time) <= KEYS * tokens
    if (alike := begins.count(begins[0])) < count:
        assert (count - 1) * time < tokens / BUSY  # only because it would be too small
    elif count < alike:
        more = count + 1
        assert more * time > tokens or more * (prefix + time) > KEYS * tokens
    if count > 1:
        budget.shrink(begins, length, prefix)
        assert budget.rows(begins, length, prefix) <= count // 2


def test_a_single_row_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small = scorer(tiny_model("llama"), PROBLEMS)

    def never(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("nothing fits")

    monkeypatch.setattr(small, "_judge_batch", never)
    with pytest.raises(torch.OutOfMemoryError):
        small.judge(*suffixes(4))


def test_a_suffix_may_end_the_prompt() -> None:
    """As behind a cloze question's own prompt, whose answer is one token."""
    model = tiny_model("llama").double()
    problem = Problem((1, 9, 4), (), TextTarget((7,)))
    with frozen_model(model):
        scorer = Scorer(Decoder(model), [problem], Budget(64))
        losses, _ = scorer.judge((5, 6), torch.tensor([[5, 6], [5, 8]]))
        logits = model(torch.tensor([[1, 9, 4, 5, 6], [1, 9, 4, 5, 8]])).logits[:, -1]
        assert torch.allclose(losses[0], -logits.log_softmax(dim=-1)[:, 7])
        assert scorer.gradient((5, 6), torch.arange(3, 9)).shape == (2, 6)
