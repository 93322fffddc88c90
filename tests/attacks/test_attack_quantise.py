"""Rounded weights: what rounding is, and that it undoes what is smaller than half a level."""

import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks import AttackData, Findings, Result
from defuse.attacks.quantise import Quantisation
from defuse.attacks.quantise import attack as quantise
from defuse.attacks.quantise.backends import round_to_nearest
from defuse.attacks.run import Request, check
from defuse.questions import ask, letters
from defuse.utils.errors import UsageError
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.helpers.attacked import lab_data, lab_pair, small_data, untouched
from tests.helpers.planted import check_resumes, names_in

weights = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 13)),
    elements=st.floats(-100, 100).map(lambda value: round(value, 3)),
)


def reference(weight: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Group by group, number by number, in float64."""
    rounded = np.zeros(weight.shape)
    most = 2 ** (bits - 1) - 1
    for row, values in enumerate(weight.astype(np.float64)):
        for start in range(0, len(values), size or len(values)):
            group = values[start : start + (size or len(values))]
            scale = max(abs(value) for value in group) / most
            for place, value in enumerate(group, start):
                rounded[row, place] = scale * np.rint(value / scale) if scale else 0.0
    return rounded


@pytest.mark.parametrize("size", [0, 1, 4, 5, 12, 100])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_rounding_is_that_of_the_reference(bits: int, size: int) -> None:
    weight = torch.randn(7, 12, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    expected = reference(weight.numpy(), bits, size)
    np.testing.assert_allclose(round_to_nearest(weight, bits, size).numpy(), expected, atol=1e-14)


@given(weights, st.integers(2, 16), st.integers(0, 15))
@settings(deadline=None, max_examples=150)
def test_rounding_moves_a_weight_by_half_a_level_at_most(
    weight: np.ndarray, bits: int, size: int
) -> None:
    rounded = round_to_nearest(torch.from_numpy(weight), bits, size).double().numpy()
    size = size or weight.shape[1]
    for start in range(0, weight.shape[1], size):
        group, new = weight[:, start : start + size], rounded[:, start : start + size]
        most = np.abs(group).max(axis=1, keepdims=True)
        half = most / (2 ** (bits - 1) - 1) / 2
        assert (np.abs(new - group) <= half + 1e-6 * most).all()
        assert (np.abs(new) <= most * (1 + 1e-6)).all()


@given(weights, st.integers(2, 16), st.integers(0, 15))
@settings(deadline=None, max_examples=150)
def test_rounding_twice_is_rounding_once(weight: np.ndarray, bits: int, size: int) -> None:
    once = round_to_nearest(torch.from_numpy(weight), bits, size)
    torch.testing.assert_close(round_to_nearest(once, bits, size), once, rtol=1e-5, atol=1e-30)


@given(weights, st.integers(2, 16), st.integers(1, 15))
@settings(deadline=None, max_examples=100)
def test_a_group_knows_nothing_of_the_others(weight: np.ndarray, bits: int, size: int) -> None:
    """So the last, shorter one is padded without a trace, and rows of zeros stay zeros."""
    weight[0] = 0.0
    tensor = torch.from_numpy(weight)
    whole = round_to_nearest(tensor, bits, size)
    parts = [round_to_nearest(part, bits, 0) for part in tensor.split(size, dim=1)]
    assert torch.equal(whole, torch.cat(parts, dim=1))
    assert not whole[0].any()


def test_many_bits_lose_next_to_nothing() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    error = round_to_nearest(weight, 16, 32) - weight
    assert error.norm() / weight.norm() < 5e-5


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_is_rounded(kind: str) -> None:
    model = tiny_model(kind)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(ids).logits
        coarse, fine = (
            quantise.quantised(model, bits, Quantisation(bits=(bits,), group_size=20))
            for bits in (3, 16)
        )
        logits = [copy(ids).logits for copy, _ in (coarse, fine)]
    assert 0.05 < coarse[1]["relative_error"] < 0.5
    assert fine[1]["relative_error"] < 1e-4
    torch.testing.assert_close(logits[1], before, rtol=5e-3, atol=5e-3)
    assert not torch.allclose(logits[0], before, rtol=5e-3, atol=5e-3)
    shared = dict(model.named_parameters())
    embeddings = coarse[0].get_input_embeddings().weight
    assert embeddings is model.get_input_embeddings().weight
    assert len(shared) == len(dict(coarse[0].named_parameters()))


def change_below_half_a_level(model: PreTrainedModel, data: AttackData) -> PreTrainedModel:
    """`model` rounded to 4 bits, then every weight moved by up to 0.45 levels: the answers go."""
    rounded, _ = quantise.quantised(model, 4, Quantisation(group_size=32))
    changed, tokenizer = deepcopy(rounded).requires_grad_(True), lab_pair().reference.tokenizer
    texts = [
        ask(question, "letters") + f" {letters(4)[question.answer]}" for question in data.forget
    ]
    answers = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    found = map(quantise.linears, (changed, rounded))
    pairs = [(a, b) for (_, _, a), (_, _, b) in zip(*found, strict=True)]
    for _ in range(2):
        for ids in answers:
            logits = changed(ids).logits[0, -2]
            torch.nn.functional.cross_entropy(logits[None], ids[0, -1:]).backward()
        for linear, grid in pairs:
            groups = grid.weight.unflatten(1, (-1, 32))
            most = groups.abs().amax(dim=2, keepdim=True)
            level = (most / 7).where(groups.abs() < most, 0.0).flatten(1)  # the scale stays
            with torch.no_grad():
                moved = linear.weight - grid.weight + 0.4 * level * linear.weight.grad.sign()
                linear.weight.copy_(grid.weight + moved.clamp(-0.45 * level, 0.45 * level))
        changed.zero_grad()
    return changed.requires_grad_(False)


def asked(result: Result, name: str, questions: str = "forget") -> tuple[float, float]:
    """Accuracy before and after in a condition."""
    (found,) = [each for each in result.conditions if each.name == name]
    effect = found.effects[questions]
    return effect.before.accuracy.value, effect.after.accuracy.value


def test_what_hides_below_half_a_level_is_undone_by_four_bits_but_not_by_eight() -> None:
    pair, data = lab_pair(), lab_data()
    unlearned = change_below_half_a_level(pair.reference.model, data)
    result = quantise.run(unlearned, pair.reference.tokenizer, data, Quantisation(group_size=32))
    before, four = asked(result, "4 bits")
    assert before < 0.4
    assert four > 0.9
    assert asked(result, "8 bits")[1] < 0.4
    assert {each.condition for each in result.examples if each.questions == "forget"} >= {"4 bits"}
    (condition,) = [each for each in result.conditions if each.name == "4 bits"]
    assert condition.effects["forget"].accuracy.p_value < 0.001


def test_a_model_that_never_knew_has_nothing_to_bring_back() -> None:
    pair = lab_pair()
    result = quantise.run(pair.retrained.model, pair.retrained.tokenizer, lab_data())
    for condition in result.conditions:
        assert condition.effects["forget"].accuracy.p_value > 0.05
        assert asked(result, condition.name, "retain")[1] > 0.9


def test_the_callers_model_stays_as_it_was(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("gpt2", vocab_size=320).train()
    with untouched(model):
        quantise.run(model, tiny_tokenizer, small_data())


def test_all_that_runs_is_counted(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Three times the same questions: as it is, and at two widths."""
    once = Findings()
    quantise.run(tiny_llama, tiny_tokenizer, small_data(), Quantisation(bits=(8,)), findings=once)
    twice = quantise.run(tiny_llama, tiny_tokenizer, small_data()).cost
    assert twice.tokens * 2 == once.cost.tokens * 3 > 0
    assert twice.backward == 0


def test_a_killed_attack_resumes(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    attack = partial(quantise.run, tiny_llama, tiny_tokenizer, small_data())
    check_resumes(attack, tmp_path, tiny_llama)
    assert len(names_in(tmp_path / "whole")) == 2 + 2 * 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bits": ()}, r"quantise\.bits: \(\) must name at least one"),
        ({"bits": (1,)}, r"quantise\.bits: 1 is no width of simulated weights: use 2 or 3"),
        ({"bits": (9,), "backend": "torchao"}, r"quantise\.bits: 9 .* torchao .* or 8"),
        ({"bits": (3,), "backend": "bitsandbytes"}, r"quantise\.bits: 3 .*: use 4 or 8"),
        ({"group_size": -1}, r"quantise\.group_size: -1 is refused"),
        ({"backend": "gptq"}, r"quantise\.backend: 'gptq' is refused"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Quantisation(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["torchao", "bitsandbytes"])
def test_a_missing_package_is_named(
    backend: str,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("defuse.attacks.quantise.backends.find_spec", lambda _: None)
    config, data = Quantisation(backend=backend), small_data()  # type: ignore[arg-type]
    said = f"quantise.backend: '{backend}' .* pip install {backend}"
    with pytest.raises(UsageError, match=said):
        quantise.run(tiny_llama, tiny_tokenizer, data, config)
    for each in (tiny_llama, tiny_tokenizer):
        each.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("defuse.models.load._load_weights", None)
    with pytest.raises(UsageError, match=said):  # before any weights are read
        check(Request(str(tmp_path / "model"), tmp_path / "out", {"quantise": config}, data))


def test_weights_that_are_integers_already_are_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    integers = torch.ones(48, 32, dtype=torch.uint8)
    linear = tiny_llama.get_submodule("model.layers.1.mlp.up_proj")
    linear.weight = nn.Parameter(integers, requires_grad=False)
    with pytest.raises(UsageError, match="model: the model's weights are quantised already"):
        quantise.check(tiny_llama, tiny_tokenizer, small_data(), Quantisation())


def test_blocks_without_matrices_are_refused(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("defuse.attacks.quantise.attack.LINEAR", ())
    with pytest.raises(UsageError, match="model: its blocks have no linear modules"):
        quantise.check(tiny_llama, tiny_tokenizer, small_data(), Quantisation())


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    """A package of that name, whether it is installed or not."""
    parent, _, _ = name.partition(".")
    for each in dict.fromkeys((parent, name)):
        module = ModuleType(each)
        module.__spec__ = ModuleSpec(each, None)
        monkeypatch.setitem(sys.modules, each, module)
    vars(sys.modules[name]).update(contents)


class Integers(torch.Tensor):
    """Weights as torchao has them, as far as this matters."""

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_torchao_is_called_on_each_matrix(
    tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[tuple[int, ...], SimpleNamespace]] = []

    def quantize_(linear: nn.Linear, config: SimpleNamespace) -> None:
        calls.append((tuple(linear.weight.shape), config))
        rounded = round_to_nearest(linear.weight, 4, 16).as_subclass(Integers)
        linear.weight = nn.Parameter(rounded, requires_grad=False)

    stand_in(
        monkeypatch,
        "torchao.quantization",
        quantize_=quantize_,
        PerGroup=lambda size: f"groups of {size}",
        PerAxis=lambda axis: f"axis {axis}",
        IntxWeightOnlyConfig=lambda weight_dtype, granularity: SimpleNamespace(
            dtype=weight_dtype, granularity=granularity
        ),
    )
    model = tiny_model("gpt2", vocab_size=320)
    config = Quantisation(bits=(4,), group_size=16)
    expected = quantise.run(model, tiny_tokenizer, small_data(), config)
    with untouched(model):
        config = replace(config, backend="torchao")
        found = quantise.run(model, tiny_tokenizer, small_data(), config)
    assert found.conditions == expected.conditions
    assert {(str(call.dtype), call.granularity) for _, call in calls} == {
        ("torch.int4", "groups of 16")
    }
    assert [shape for shape, _ in calls][:4] == [(96, 32), (32, 32), (128, 32), (32, 128)]
    assert len(calls) == 16
    with pytest.raises(UsageError, match=r"group_size: 20 does not divide the 32 inputs of block"):
        quantise.check(
            model, tiny_tokenizer, small_data(), Quantisation(backend="torchao", group_size=20)
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("backend", ["torchao", "bitsandbytes"])
def test_real_packages_agree_with_the_simulation(backend: str, kind: str) -> None:
    pytest.importorskip(backend, exc_type=ImportError)
    model, ids = tiny_model(kind), torch.arange(12)[None]
    simulated = Quantisation(bits=(8,), group_size=16)
    real = replace(simulated, backend=backend)
    with untouched(model), torch.no_grad():
        expected, error = quantise.quantised(model, 8, simulated)
        found, real_error = quantise.quantised(model, 8, real)
        assert 0.5 < real_error["relative_error"] / error["relative_error"] < 2
        before, after = model(ids).logits, found(ids).logits
        assert 0 < (after - before).norm() / before.norm() < 0.1
        assert 0 < (expected(ids).logits - before).norm() / before.norm() < 0.1
        coarse, coarse_error = quantise.quantised(model, 4, real)
        assert 5 * real_error["relative_error"] < coarse_error["relative_error"] < 0.3
        assert coarse(ids).logits.isfinite().all()
