"""Planted neurons are found exactly and taken out; scores are those of plain float64 passes."""

from functools import cache, partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from defuse.attacks import Result, prune
from defuse.attacks.passages import passages
from defuse.attacks.prune import Pruning
from defuse.attacks.prune.attack import pruned
from defuse.attacks.prune.sensitivity import Scores, matrix_name, neuron_scores, weight_scores
from defuse.attacks.prune.units import drawn, reduced, set_difference, tops
from defuse.data.collate import TextBatch, collate
from defuse.data.text import Encoded
from defuse.models.decoder import Decoder
from defuse.utils.errors import UsageError
from defuse.utils.random import generator
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.helpers.planted import LAYER, PLANTED, check_resumes, few, lab, suppressed, untouched

TEXTS = [Encoded((3, 9, 4, 17, 5, 22), 1), Encoded((8, 2, 40), 2), Encoded((7, 7, 30, 11), 1)]
scores_of = st.lists(st.integers(-3, 9), min_size=4, max_size=30)


@cache
def found(
    planted: bool, unit: str = "neuron", score: str = "snip", more: tuple[float, ...] = ()
) -> Result:
    base, tokenizer, data = lab()
    model = suppressed()[0] if planted else base
    share = PLANTED / 387 if unit == "neuron" else 0.02
    config = Pruning(shares=(share, *more), unit=unit, score=score)  # type: ignore[arg-type]
    with untouched(model):
        return prune.run(model, tokenizer, data, config)


@pytest.mark.parametrize("score", ["snip", "signed"])
@pytest.mark.parametrize("unit", ["neuron", "weight"])
def test_without_what_was_planted_the_answers_are_back(unit: str, score: str) -> None:
    chosen, random = found(True, unit, score).conditions
    assert chosen.effects["forget"].before.accuracy.value < 0.5
    assert chosen.effects["forget"].after.accuracy.value > 0.9
    assert chosen.effects["retain"].after.accuracy.value > 0.9
    assert random.effects["forget"].after.accuracy.value < 0.5
    assert random.numbers == chosen.numbers
    assert random.name == f"{chosen.name}, random"


def test_the_planted_neurons_are_those_that_are_found() -> None:
    base, tokenizer, data = lab()
    model, _ = suppressed()
    how, share = Pruning(texts=24, length=64, batch_size=4, seed=0), PLANTED / 387
    forget, retain = (
        neuron_scores(model, passages(model, tokenizer, data, each, how)) for each in data.sets
    )
    name = matrix_name(Decoder(model), LAYER)
    mask = set_difference(tops(forget[name], [share]), tops(retain[name], [0.05]), share, 0.05)
    assert mask.nonzero()[:, 0].tolist() == list(range(384, 384 + PLANTED))
    # Without them the model is the base again.
    restored = pruned(model, {name: mask}).get_parameter(name)
    assert torch.equal(restored[:, :384], base.get_parameter(name))
    assert not restored[:, 384:].any()


def test_where_nothing_is_planted_little_changes() -> None:
    for condition in found(False).conditions:
        for effect in condition.effects.values():
            assert effect.accuracy.p_value > 0.05
            assert abs(effect.logprob.value) < 0.05


def plain_scores(kind: str, *, neurons: bool, signed: bool) -> Scores:
    """By one plain backward pass for each text, in float64."""
    model = tiny_model(kind).double()
    decoder = Decoder(model)
    paths = [matrix_name(decoder, layer) for layer in range(4)]
    modules = [model.get_submodule(path.removesuffix(".weight")) for path in paths]
    total: Scores = {}
    for text in TEXTS:
        seen: list[Tensor] = []

        def keep(_: object, inputs: tuple[Tensor, ...], seen: list[Tensor] = seen) -> None:
            inputs[0].retain_grad()
            seen.append(inputs[0])

        hooks = [module.register_forward_pre_hook(keep) for module in modules]
        ids = torch.tensor([text.ids])
        logits = model(ids).logits[0]
        at = text.answer_start
        model.zero_grad()
        F.cross_entropy(logits[at - 1 : -1], ids[0, at:]).backward()
        for hook in hooks:
            hook.remove()
        for path, states in zip(paths, seen, strict=True):
            weight = model.get_parameter(path)
            assert weight.grad is not None
            assert states.grad is not None
            product = (states * states.grad)[0].sum(dim=0) if neurons else weight * weight.grad
            value = (product if signed else product.abs()).detach() / len(TEXTS)
            total[path] = total.get(path, torch.zeros_like(value)) + value
    return total


def batch_of(*texts: Encoded) -> TextBatch:
    return collate(texts, [("x", i) for i in range(len(texts))], pad_token_id=0)


@pytest.mark.parametrize("signed", [False, True], ids=["snip", "signed"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_neuron_scores_are_those_of_plain_passes(kind: str, signed: bool) -> None:
    expected = plain_scores(kind, neurons=True, signed=signed)
    model = tiny_model(kind).train()
    with untouched(model):
        scores = neuron_scores(model, [batch_of(*TEXTS[:2]), batch_of(TEXTS[2])], signed=signed)
    assert_close(scores, expected)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt_neox", "gpt2"])
def test_weight_scores_are_those_of_plain_passes(kind: str) -> None:
    model = tiny_model(kind)
    with untouched(model):
        scores = weight_scores(model, [batch_of(text) for text in TEXTS])
    expected = plain_scores(kind, neurons=False, signed=False)
    assert_close({name: scores[name] for name in expected}, expected)
    assert len(scores) > len(expected)  # attention has its own


def test_half_precision_scores_are_near() -> None:
    exact = neuron_scores(tiny_model("llama"), [batch_of(*TEXTS)])
    half = neuron_scores(tiny_model("llama").bfloat16(), [batch_of(*TEXTS)])
    for name, values in exact.items():
        assert half[name].dtype == torch.float32
        assert torch.corrcoef(torch.stack([values, half[name]]))[0, 1] > 0.98


def assert_close(found: Scores, expected: Scores) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        scale = float(values.abs().max())
        torch.testing.assert_close(found[name].double(), values, rtol=1e-3, atol=1e-3 * scale)


def plain_top(scores: Tensor, share: float) -> Tensor:
    """On all scores at once: a mask."""
    flat = scores.flatten()
    highest = flat.topk(round(share * len(flat))).indices
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[highest] = flat[highest] > 0
    return mask.view(scores.shape)


@given(scores_of, st.data(), st.lists(st.floats(0.01, 1), min_size=1), st.floats(0, 0.9))
def test_the_set_difference_is_the_forget_top_less_the_retain_top(
    forget: list[int], data: st.DataObject, shares: list[float], keep: float
) -> None:
    """From places alone, with ties, as from all scores."""
    count = len(forget)
    retain = data.draw(st.lists(st.integers(-3, 9), min_size=count, max_size=count))
    own, other = torch.tensor(forget).float(), torch.tensor(retain).float()
    mine, others = reduced({"matrix": own}, shares)["matrix"], tops(other, [keep])
    for share in shares:
        mask, kept = set_difference(mine, others, share, keep), plain_top(other, keep)
        assert torch.equal(mask, plain_top(own, share) & ~kept)
        assert int(mask.sum()) <= round(share * count)
        assert all(forget[place] > 0 for place in mask.nonzero()[:, 0])
        free = [forget[i] for i in range(count) if not mask[i] and not kept[i]]
        if mask.any() and int(mine.mask(share).sum()) == int(mask.sum()):
            assert min(forget[i] for i in mask.nonzero()[:, 0]) >= max([*free, -9])


def test_what_is_left_of_scores_is_a_few_per_cent_of_them() -> None:
    scores = {name: torch.rand(200, 500) for name in ("a", "b")}
    size = sum(values.nbytes for values in scores.values())
    left = reduced(scores, Pruning().shares)
    assert scores == {}
    assert sum(p.nbytes for each in left.values() for p in each.places.values()) < 0.1 * size
    assert left["a"].mask(0.01).shape == (200, 500)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 40), st.integers(0, 9))
def test_random_units_are_as_many_as_there_may_be(
    allowed: list[bool], count: int, seed: int
) -> None:
    mask = drawn(torch.tensor(allowed), count, generator(seed))
    assert int(mask.sum()) == min(count, sum(allowed))
    assert not (mask & ~torch.tensor(allowed)).any()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pruned_copy_lacks_the_neurons_and_shares_the_rest(kind: str) -> None:
    model = tiny_model(kind)
    decoder = Decoder(model)
    name = matrix_name(decoder, 1)
    neurons = len(neuron_scores(model, [batch_of(*TEXTS)])[name])
    mask = torch.arange(neurons) < 3
    with untouched(model):
        copy = pruned(model, {name: mask})
    for other, tensor in copy.named_parameters():
        assert (tensor is not model.get_parameter(other)) == (other == name)
    # A factor 0 before the neurons and weights of 0 behind them are the same.
    module = model.get_submodule(name.removesuffix(".weight"))
    hook = module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * ~mask,))
    ids = torch.tensor([TEXTS[0].ids])
    with torch.no_grad():
        expected = model(ids).logits
    hook.remove()
    with torch.no_grad():
        torch.testing.assert_close(copy(ids).logits, expected)


@pytest.mark.parametrize("unit", ["neuron", "weight"])
def test_a_killed_attack_goes_on(tmp_path: Path, unit: Literal["neuron", "weight"]) -> None:
    _, tokenizer, _ = lab()
    config = Pruning(shares=(0.01,), unit=unit, texts=4)
    model, _ = suppressed()
    check_resumes(
        partial(prune.run, model, tokenizer, few(), config),
        tmp_path,
        model,
        stops=1,
    )


def test_passes_of_pruned_copies_are_counted() -> None:
    _, _, data = lab()
    questions = len(data.forget) + len(data.retain)
    cost, more = found(True).cost, found(True, more=(0.02,)).cost
    assert cost.backward == more.backward == questions
    asked = questions + 2  # what a set's prompts have in common is run by itself
    assert more.forward == cost.forward + 2 * asked  # another chosen and random copy


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"shares": ()}, "shares"),
        ({"shares": (0.1, 1.5)}, "shares.1: 1.5"),
        ({"shares": (0.0,)}, "shares: 0.0"),
        ({"keep": 1.0}, "keep: 1.0"),
        ({"unit": "head"}, "unit: 'head'"),
        ({"score": "wanda"}, "score: 'wanda'"),
        ({"texts": 0}, "texts: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"length": 1}, "length: 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"prune.{sentence}"):
        Pruning(**settings)
