"""The loop as its caller sees it: what changes, what must not, and what is refused."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.data.text import QuestionAnswer
from defuse.methods import (
    DPO,
    NPO,
    RMU,
    AdaptiveRMU,
    HiddenMSE,
    LogitKL,
    Method,
    RepresentationMethod,
    Retain,
)
from defuse.models.decoder import Decoder
from defuse.unlearning.config import Topic, Training, Unlearning
from defuse.unlearning.defaults import DEFAULTS
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.tokenized import MEASURED_TEXTS, encode_topics
from defuse.unlearning.train import Result, StepRecord, unlearn
from defuse.utils.errors import UsageError

FORGET = [f"The cat number {i} sees a small bird in the tree" for i in range(6)]
RETAIN = [f"I read about the moon {i} times today" for i in range(5)]
TOPIC = Topic("cats", FORGET, RETAIN, weight=2.0)
RMU_AT_2 = Unlearning(RMU(), HiddenMSE(), layer=2)
FAST = Training(steps=4, batch_size=2, learning_rate=1e-2)
Unlearn = Callable[..., Result]


@pytest.fixture
def run(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase) -> Unlearn:
    def call(
        unlearning: Unlearning = RMU_AT_2,
        training: Training = FAST,
        *topics: Topic,
        **options: object,
    ) -> Result:
        chosen = topics or (TOPIC,)
        return unlearn(tiny_llama, tiny_tokenizer, chosen, unlearning, training, **options)  # type: ignore[arg-type]

    return call


def snapshot(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_only_the_trained_matrices_change(run: Unlearn, tiny_llama: PreTrainedModel) -> None:
    before = snapshot(tiny_llama)
    result = run()
    trained = {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1, 2)}
    assert set(result.changed) == trained
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained)


def test_the_caller_s_model_is_left_as_found(run: Unlearn, tiny_llama: PreTrainedModel) -> None:
    tiny_llama.train()
    frozen = tiny_llama.model.embed_tokens.weight  # type: ignore[union-attr]
    frozen.requires_grad_(False)
    tiny_llama.lm_head.weight.grad = torch.ones_like(tiny_llama.lm_head.weight)  # type: ignore[union-attr]
    before = snapshot(tiny_llama)
    result = run()
    for name, tensor in tiny_llama.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert tiny_llama.training
    assert not frozen.requires_grad
    assert tiny_llama.lm_head.weight.requires_grad  # type: ignore[union-attr]
    assert (tiny_llama.lm_head.weight.grad == 1).all()  # type: ignore[union-attr]
    assert result.model is not tiny_llama
    shared = result.model.get_parameter("model.embed_tokens.weight")
    assert shared.data_ptr() == frozen.data_ptr()  # type: ignore[operator]


def test_in_place_work_changes_the_caller_s_model(
    run: Unlearn, tiny_llama: PreTrainedModel
) -> None:
    expected = run().changed
    result = run(in_place=True)
    assert result.model is tiny_llama
    for name, tensor in expected.items():
        assert torch.equal(tiny_llama.get_parameter(name), tensor)


def test_a_failed_run_leaves_the_model_as_found(run: Unlearn, tiny_llama: PreTrainedModel) -> None:
    tiny_llama.train()
    before = snapshot(tiny_llama)
    with pytest.raises(UsageError, match="learning_rate: at step"):
        run(RMU_AT_2, replace(FAST, learning_rate=1e30), in_place=True)
    assert tiny_llama.training
    assert all(parameter.requires_grad for parameter in tiny_llama.parameters())
    assert all(torch.equal(t, before[n]) for n, t in tiny_llama.state_dict().items())


def test_losses_fall_where_they_should(run: Unlearn) -> None:
    records = run(RMU_AT_2, replace(FAST, steps=40)).records
    assert records[0].retain_loss == pytest.approx(0, abs=1e-10)
    assert records[-1].forget_loss < 0.5 * records[0].forget_loss


def test_the_same_seed_gives_the_same_bits_and_another_does_not(run: Unlearn) -> None:
    noisy = replace(RMU_AT_2, noise=GaussianNoise(std="0.3x"))
    first, again = run(noisy).changed, run(noisy).changed
    other = run(noisy, replace(FAST, seed=1)).changed
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_noise_does_not_change_the_batches(run: Unlearn) -> None:
    shuffled = replace(FAST, shuffle=True)
    without = run(RMU_AT_2, shuffled).records
    noisy = run(replace(RMU_AT_2, noise=GaussianNoise(std=0.1)), shuffled).records
    assert noisy[0].forget_loss == without[0].forget_loss
    assert noisy[0].retain_loss == pytest.approx(0.01, rel=0.3)  # ν, at the start


@pytest.mark.parametrize("keep_gib", [0.0, 1.0])
def test_keeping_frozen_states_changes_nothing(run: Unlearn, keep_gib: float) -> None:
    unlearning = Unlearning(NPO(), LogitKL(), GaussianNoise(std=0.1), layer=2)
    expected = run(unlearning, replace(FAST, steps=9, keep_gib=0.5)).records
    found = run(unlearning, replace(FAST, steps=9, keep_gib=keep_gib)).records
    for one, other in zip(found, expected, strict=True):
        assert one.forget_loss == pytest.approx(other.forget_loss, rel=1e-4)


def test_topics_alternate_and_have_their_own_numbers(run: Unlearn) -> None:
    other = replace(TOPIC, name="moons", forget=RETAIN, coefficient="4x")
    records = run(RMU_AT_2, FAST, TOPIC, other).records
    assert [record.topic for record in records] == ["cats", "moons"] * 2


@pytest.mark.parametrize(
    ("method", "retain"), [(RMU(), HiddenMSE()), (NPO(), LogitKL())], ids=lambda part: part.name
)
def test_a_topic_without_numbers_takes_the_table_s(
    run: Unlearn, method: Method, retain: Retain
) -> None:
    unlearning = Unlearning(method, retain, layer=2)
    row = DEFAULTS[method.name, retain.name]  # type: ignore[union-attr]
    bare = Topic("cats", FORGET, RETAIN)
    tokens = bare.forget_length if isinstance(method, NPO) else 1  # NPO's sums over tokens
    full = replace(bare, weight=row.weight * tokens, coefficient=row.strength)
    found, expected = (run(unlearning, FAST, topic).records for topic in (bare, full))
    assert [r.forget_loss for r in found] == [r.forget_loss for r in expected]


def test_hidden_variance_scales_both_terms_alike(run: Unlearn) -> None:
    noisy = replace(RMU_AT_2, noise=GaussianNoise(std="1x"))
    plain = run(noisy, replace(FAST, steps=1)).records[0]
    scaled = run(replace(noisy, loss_scale="hidden_variance"), replace(FAST, steps=1)).records[0]
    assert scaled.retain_loss == pytest.approx(1.0, rel=0.2)  # noise of one hidden std
    factor = plain.forget_loss / scaled.forget_loss
    assert plain.retain_loss / scaled.retain_loss == pytest.approx(factor)


def test_adaptive_rmu_starts_equal_per_sample_and_per_topic_for_one_text(run: Unlearn) -> None:
    single = replace(TOPIC, forget=FORGET[:1])
    one = replace(FAST, steps=1, batch_size=1)
    losses = [
        run(Unlearning(AdaptiveRMU(scale_per=per), layer=2), one, single).records[0].forget_loss
        for per in ("sample", "topic")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_dpo_answers_the_same_question_with_a_refusal(run: Unlearn) -> None:
    """So its start is 2·log 2/β: every ratio is 0, whatever the lengths."""
    pairs = [QuestionAnswer("What does the cat see?", "a bird"), FORGET[0]]
    unlearning = Unlearning(DPO(refusals=("I do not know.", "No idea.")), LogitKL(), layer=2)
    record = run(unlearning, FAST, replace(TOPIC, forget=pairs)).records[0]
    assert record.forget_loss == pytest.approx(2 / 0.1 * 0.693147, rel=1e-4)


def test_half_precision_trains_float32_masters_unless_told_otherwise(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_llama: PreTrainedModel
) -> None:
    """A learning rate far below bfloat16's spacing still moves the masters, in the end."""
    small = replace(FAST, steps=30, learning_rate=1e-4)
    moved = {}
    for master_weights in (True, False):
        model = deepcopy(tiny_llama).bfloat16()
        unlearning = replace(RMU_AT_2, master_weights=master_weights)
        changed = unlearn(model, tiny_tokenizer, [TOPIC], unlearning, small).changed
        assert all(tensor.dtype == torch.bfloat16 for tensor in changed.values())
        moved[master_weights] = sum(
            (tensor != model.get_parameter(name)).sum().item() for name, tensor in changed.items()
        )
    assert moved[True] > 2 * moved[False]


def test_every_step_and_checkpoint_is_told(run: Unlearn) -> None:
    steps: list[StepRecord] = []
    models: dict[int, PreTrainedModel] = {}
    result = run(on_step=steps.append, checkpoints=[2, 4], on_checkpoint=models.__setitem__)
    assert tuple(steps) == tuple(result.records)
    assert sorted(models) == [2, 4]
    name = next(iter(result.changed))
    assert torch.equal(models[4].get_parameter(name), result.changed[name])
    assert not torch.equal(models[2].get_parameter(name), result.changed[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 9}, r"layer: 9 .*0 to 3"),
        ({"layer": -1}, r"layer: -1 is refused"),
        ({"train_layers": (1, 3)}, r"train.layers: \[3\] are above layer 2"),
        ({"method": NPO(), "train_layers": (9,)}, r"train.layers: \[9\]"),
        ({"method": NPO(), "train_layers": ()}, r"train.layers: \[\]"),
        ({"method": NPO(), "layer": 1, "train_layers": (3,)}, "does not change the hidden states"),
        ({"train_parameters": "mlp.nothing"}, r"'mlp.nothing' matches"),
        ({"train_parameters": "mlp.down"}, r"'mlp.down' matches nothing"),
        ({"method": "rmu"}, r"method: 'rmu' is no method; give an object such as RMU\(\)"),
        ({"method": RMU}, "method: .* is no method; give an object"),
        ({"retain": "hidden_mse"}, "retain: 'hidden_mse' is no retain; give an object"),
        ({"noise": 0.3}, "noise: 0.3 is no GaussianNoise; give one"),
        ({"lora": 4}, "lora: 4 is no LoRA; give one"),
        ({"mask_padding": 1}, r"mask_padding: 1 is refused \(input should be a valid boolean\)"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(
    run: Unlearn, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(Unlearning(**{"method": RMU(), "layer": 2, **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps: 0 is refused"),
        ({"batch_size": 0}, "batch_size: 0 is refused"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is refused"),
        ({"learning_rate": -1.0}, r"learning_rate: -1\.0 is refused"),
        ({"keep_gib": -1}, "keep_gib: -1 is refused"),
        ({"seed": "1"}, "seed: '1' is refused"),
    ],
)
def test_a_bad_number_of_the_loop_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Training(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forget": []}, r"topics\.cats\.forget: \[\] must hold at least one text"),
        ({"forget": "one string"}, r"topics\.cats\.forget: str is no list; give a list"),
        ({"forget": [{"body": "x"}]}, r"topics\.cats\.forget, item 0: has neither 'text' nor 'qu"),
        ({"weight": float("inf")}, r"topics\.cats\.weight: inf is refused"),
        ({"weight": "4x"}, r"topics\.cats\.weight: '4x' is refused"),
        ({"coefficient": "4"}, r"topics\.cats\.coefficient: '4' is neither a number nor a multip"),
        ({"retain_length": 1}, r"topics\.cats\.retain_length: 1 is refused"),
        ({"scale": 3}, r"topics\.cats\.scale: 3 does not belong to rmu, which has 'coefficient'"),
    ],
)
def test_a_bad_value_of_a_topic_is_refused(
    run: Unlearn, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(RMU_AT_2, FAST, replace(TOPIC, **settings))


@pytest.mark.parametrize("layers", [(2,), "all"])
def test_all_parameters_of_the_named_blocks_can_train(
    run: Unlearn, tiny_llama: PreTrainedModel, layers: object
) -> None:
    unlearning = Unlearning(NPO(), LogitKL(), layer=2, train_layers=layers, train_parameters="all")  # type: ignore[arg-type]
    changed = run(unlearning).changed
    decoder = Decoder(tiny_llama)
    wanted = range(4) if layers == "all" else [2]
    names = {
        decoder.parameter_name(layer, name)
        for layer in wanted
        for name, _ in decoder.blocks[layer].named_parameters()
    }
    assert set(changed) == names
    assert not isinstance(unlearning.method, RepresentationMethod)


@dataclass(frozen=True)
class OneOfMyOwn(RMU):
    name: ClassVar[str] = "mine"


def test_a_method_of_one_s_own_needs_its_numbers(run: Unlearn) -> None:
    with pytest.raises(UsageError, match=r"topics\.cats\.weight: .* no default for OneOfMyOwn"):
        run(Unlearning(OneOfMyOwn(), layer=2), FAST, Topic("cats", FORGET, RETAIN))
    numbers = replace(TOPIC, coefficient="4x")
    assert run(Unlearning(OneOfMyOwn(), layer=2), FAST, numbers).changed


def test_only_texts_that_the_steps_reach_are_encoded(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    many = [f"The cat number {i}" for i in range(500)]
    topic = Topic("cats", many, many, weight=1.0)
    for shuffle in (False, True):
        training = Training(steps=5, batch_size=4, shuffle=shuffle)
        arguments = (Decoder(tiny_llama), RMU_AT_2, tiny_tokenizer, [topic], training)
        (encoded,) = encode_topics(*arguments)
        assert encoded.forget.count == 500
        assert len(encoded.forget.texts) <= MEASURED_TEXTS + 5 * 4
        for turn in range(5):
            assert set(encoded.forget.rows(turn, training)) <= encoded.forget.texts.keys()


@pytest.mark.parametrize(
    "settings",
    [
        lambda: AdaptiveRMU(scale_per="topics"),  # type: ignore[arg-type]
        lambda: RMU(vector="normal"),  # type: ignore[arg-type]
        lambda: NPO(normalise="means"),  # type: ignore[arg-type]
        lambda: Unlearning(RMU(), loss_scale="variance"),  # type: ignore[arg-type]
    ],
)
def test_a_misspelt_choice_is_refused_and_not_taken_for_another(settings) -> None:
    with pytest.raises(UsageError, match=r"is refused \(input should be"):
        settings()
