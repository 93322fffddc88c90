"""Relearning: what was hidden comes back, what was never known does not come as fast."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks import Condition, Findings, Result, open_findings, relearn
from defuse.attacks.relearn import Relearning
from defuse.attacks.relearn.attack import encode_texts, sizes
from defuse.attacks.relearn.training import (
    MasterWeights,
    TrainedCopy,
    TrainingOptions,
    next_token_loss,
)
from defuse.data.collate import TextBatch, collate
from defuse.data.text import Encoded, encode
from defuse.methods import RMU
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.unlearning.config import Topic, Training, Unlearning
from defuse.unlearning.train import unlearn
from defuse.utils.errors import UsageError
from tests.conftest import build_llama
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.helpers.attacked import lab_data, lab_pair, small_data, untouched
from tests.helpers.planted import check_resumes, names_in, outline, without_seconds

TEXTS = [f"The {name} sees a small {other}." for name in ("cat", "moon") for other in "abcdefgh"]
QUICK = Relearning(
    texts=(0, 3), steps=4, checkpoints=2, batch_size=2, learning_rate=1e-2, lora=None, length=16
)
ON_THE_LAB = Relearning(
    texts=(0, 40), steps=8, checkpoints=2, batch_size=4, learning_rate=1e-3, lora=None
)


@cache
def hiding() -> PreTrainedModel:
    """The lab's base model after a few steps of RMU: it knows, but does not tell."""
    base, data = lab_pair().reference, lab_data()
    topic = Topic(
        "lab",
        data.forget_texts,
        data.retain_texts,
        forget_length=64,
        retain_length=64,
        coefficient="12x",
        weight=4.0,
        packed=True,
    )
    unlearning = Unlearning(RMU(), layer=3, train_parameters="all", loss_scale="hidden_variance")
    training = Training(20, learning_rate=3e-3, seed=0, shuffle=True)
    return unlearn(base.model, base.tokenizer, [topic], unlearning, training).model


def conditions(result: Result) -> dict[str, Condition]:
    return {each.name: each for each in result.conditions}


def accuracy(condition: Condition, questions: str = "forget") -> float:
    return condition.effects[questions].after.accuracy.value


@pytest.fixture(scope="module")
def attacked() -> Result:
    pair = lab_pair()
    return relearn.run(
        hiding(), pair.reference.tokenizer, lab_data(), ON_THE_LAB, retrained=pair.retrained.model
    )


def test_what_was_hidden_comes_back_and_what_was_never_known_does_not(attacked: Result) -> None:
    found = conditions(attacked)
    assert accuracy(found["0 texts"]) < 0.45
    assert accuracy(found["forget, 40 texts"]) > 0.9
    assert accuracy(found["retrained, 0 texts"]) < 0.45
    assert accuracy(found["retrained, forget, 40 texts"]) < 0.5
    assert found["forget, 40 texts"].effects["forget"].accuracy.p_value < 0.001


def test_texts_on_something_else_bring_back_what_was_hidden(attacked: Result) -> None:
    found = conditions(attacked)
    assert accuracy(found["retain, 40 texts"]) > 0.6
    assert accuracy(found["retrained, retain, 40 texts"]) < 0.5


def test_no_texts_change_nothing(attacked: Result) -> None:
    for name in ("0 texts", "retrained, 0 texts"):
        for effect in conditions(attacked)[name].effects.values():
            assert effect.before == effect.after
            assert effect.accuracy.difference.value == 0


def test_tables_set_the_model_beside_the_gold_standard(attacked: Result) -> None:
    by_texts, by_steps = attacked.tables
    assert [row[:3] for row in by_texts.rows] == [
        [source, *numbers]
        for source in ("forget", "retain")
        for numbers in (["0"] * 2, ["40", "8"])
    ]
    assert [row[2] for row in by_steps.rows] == ["0", "4", "8"] * 2
    found = conditions(attacked)
    row = by_texts.rows[1]
    model, retrained = (accuracy(found[f"{who}forget, 40 texts"]) for who in ("", "retrained, "))
    assert row[3:6] == [f"{model:.3f}", f"{retrained:.3f}", f"{model - retrained:+.3f}"]
    assert float(row[7]) < 0.001


def test_curves_begin_before_and_end_with_the_conditions(attacked: Result) -> None:
    found = conditions(attacked)
    for curves, x in zip(attacked.curves, ([0, 40], [0, 4, 8]), strict=True):
        lines = {line.name: line for line in curves.lines}
        for who, prefix in (("model", ""), ("retrained", "retrained, ")):
            for source in ("forget", "retain"):
                line = lines.pop(f"{who}, {source} texts")
                begin, end = (
                    found[f"{prefix}{name}"].effects["forget"].after.accuracy
                    for name in ("0 texts", f"{source}, 40 texts")
                )
                assert line.x == x
                assert (line.y[0], line.y[-1]) == (begin, end)
        assert not lines


def test_examples_are_answers_that_turned(attacked: Result) -> None:
    of_forget = [each for each in attacked.examples if each.condition == "forget, 40 texts"]
    assert of_forget
    assert all(each.right in (each.before, each.after) for each in of_forget)
    assert not any("retrained" in each.condition for each in attacked.examples)


def test_where_nothing_is_hidden_other_texts_change_nothing() -> None:
    base = lab_pair().reference
    config = replace(ON_THE_LAB, source=("retain",), learning_rate=1e-4)
    result = relearn.run(base.model, base.tokenizer, lab_data(), config)
    for effect in conditions(result)["retain, 40 texts"].effects.values():
        assert effect.before.accuracy.value == effect.after.accuracy.value == 1


def test_lora_brings_it_back_too() -> None:
    config = replace(
        ON_THE_LAB, source=("forget",), lora=16, learning_rate=3e-3, steps=16, checkpoints=1
    )
    result = relearn.run(hiding(), lab_pair().reference.tokenizer, lab_data(), config)
    assert accuracy(conditions(result)["forget, 40 texts"]) > 0.9


def batch_of(texts: Sequence[Encoded]) -> TextBatch:
    return collate(texts, [("texts", row) for row in range(len(texts))], pad_token_id=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_loss_and_all_gradients_are_those_of_the_plain_formula(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, texts of unequal length, two tokens through the head at a time."""
    monkeypatch.setattr("defuse.models.lm_head.CHUNK_BYTES", 2 * 4 * 61)
    model = tiny_model(kind, dtype=torch.float64)
    texts = [Encoded((1, 7, 9, 30, 60, 2), 1), Encoded((1, 8, 11), 1)]
    loss = next_token_loss(Decoder(model), batch_of(texts))
    loss.backward()
    gradients = {name: tensor.grad for name, tensor in model.named_parameters()}
    model.zero_grad()
    predicted = [model(torch.tensor([text.ids])).logits[0, :-1] for text in texts]
    labels = torch.tensor([token for text in texts for token in text.ids[1:]])
    plain = F.cross_entropy(torch.cat(predicted), labels)
    plain.backward()
    torch.testing.assert_close(loss, plain)
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(gradients[name], tensor.grad)
        assert tensor.grad is not None


def test_recomputing_changes_no_number(tiny_llama: PreTrainedModel) -> None:
    texts = [Encoded((1, 7, 9, 30, 60, 2), 1), Encoded((1, 8, 11), 1)]
    options = TrainingOptions(batch_size=2, learning_rate=1e-2, lora=None, recompute=False, seed=0)
    found = []
    for recompute in (False, True):
        with frozen_model(tiny_llama):
            copy = TrainedCopy(tiny_llama, texts, replace(options, recompute=recompute), "texts")
            model = copy.after(3)
        found.append((copy.losses, [tensor.detach() for tensor in model.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_a_step_is_adamws(tiny_llama: PreTrainedModel) -> None:
    """Adam's first step is the rate against each gradient's sign."""
    texts = [Encoded((1, 7, 9, 30, 60, 2), 1)]
    options = TrainingOptions(batch_size=1, learning_rate=1e-3, lora=None, recompute=False, seed=0)
    with frozen_model(tiny_llama):
        learnt = TrainedCopy(tiny_llama, texts, options, "texts").after(1)
    next_token_loss(Decoder(tiny_llama), batch_of(texts)).backward()
    for old, new in zip(tiny_llama.parameters(), learnt.parameters(), strict=True):
        assert old.grad is not None
        expected = old - 1e-3 * old.grad.sign()
        clear = old.grad.abs() > 1e-4
        torch.testing.assert_close(new[clear], expected[clear], rtol=1e-5, atol=1e-6)


def test_small_steps_add_up_in_half_precision() -> None:
    """In bfloat16, 1 + 1e-3 is 1: eight such steps on it alone would be none."""
    weight = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    masters = MasterWeights([weight], 1e-3)
    for _ in range(8):
        weight.sum().backward()
        masters.update()
        assert weight.grad is None
    assert weight.tolist() == [0.9921875] * 4


@pytest.mark.parametrize("lora", [None, 4])
def test_half_precision_learns(lora: int | None, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("llama", vocab_size=320, dtype=torch.bfloat16)
    texts = encode(TEXTS[:3], tiny_tokenizer, 16)
    options = TrainingOptions(batch_size=3, learning_rate=1e-2, lora=lora, recompute=False, seed=0)
    with untouched(model), frozen_model(model):
        copy = TrainedCopy(model, texts, options, "texts")
        learnt = copy.after(8)
    assert copy.losses[-1] < copy.losses[0] - 0.2
    assert {tensor.dtype for tensor in learnt.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("lora", [None, 2])
def test_every_architecture_learns(kind: str, lora: int | None) -> None:
    model = tiny_model(kind)
    texts = [Encoded((1, 7, 9, 30, 60, 2), 1), Encoded((1, 8, 11), 1)]
    options = TrainingOptions(batch_size=2, learning_rate=1e-2, lora=lora, recompute=False, seed=0)
    with untouched(model), frozen_model(model):
        copy = TrainedCopy(model, texts, options, "texts")
        copy.after(6)
    assert copy.losses[-1] < copy.losses[0]


@pytest.mark.parametrize("lora", [None, 4])
def test_the_callers_models_stay_as_they_were(
    lora: int | None, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    model, retrained = (tiny_model("gpt2", vocab_size=320, seed=seed).train() for seed in (0, 1))
    retrained.requires_grad_(False)
    with untouched(model), untouched(retrained):
        config = replace(QUICK, lora=lora)
        relearn.run(model, tiny_tokenizer, small_data(TEXTS), config, retrained=retrained)


def test_a_killed_attack_resumes_from_any_place(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    attack = partial(
        relearn.run, tiny_llama, tiny_tokenizer, small_data(TEXTS), QUICK, retrained=tiny_llama
    )
    check_resumes(attack, tmp_path, tiny_llama)
    whole = attack(findings=open_findings(tmp_path / "whole", {}))
    names = names_in(tmp_path / "whole")
    assert len(names) == 2 * (2 + 2 * 2)  # both sets before, and two checkpoints a source
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for kept in (2, 4, 5, 8, 12):
        cut = tmp_path / f"{kept}.jsonl"
        cut.write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        resumed = attack(findings=open_findings(cut, {}))
        assert without_seconds(resumed) == without_seconds(whole)
        assert names_in(cut) == names


def test_all_that_runs_is_counted(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Two sources of 4 steps on 2 texts, and what is asked before and at four checkpoints."""
    findings = Findings()
    result = relearn.run(tiny_llama, tiny_tokenizer, small_data(TEXTS), QUICK, findings=findings)
    assert result.cost.backward == 2 * 4 * 2
    asked = 5 * 3
    assert result.cost.forward >= result.cost.backward + asked


def test_texts_that_are_not_there_are_not_asked_for_twice(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    config = replace(QUICK, texts=(3, 100, 1000), source=("forget",))
    result = relearn.run(tiny_llama, tiny_tokenizer, small_data(TEXTS[:5]), config)
    found = conditions(result)
    assert list(found) == ["forget, 3 texts", "forget, 5 texts"]
    assert found["forget, 5 texts"].numbers["texts_wanted"] == 100
    assert "texts_wanted" not in found["forget, 3 texts"].numbers
    assert sizes((0, 10, 100, 1000), 50) == [10, 50]


def test_fewer_texts_are_the_first_of_more(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    data = small_data(TEXTS)
    few, many = (
        encode_texts(tiny_llama, tiny_tokenizer, data, replace(QUICK, texts=(k,)))["forget"]
        for k in (3, 9)
    )
    assert many[:3] == few
    assert many != encode(TEXTS[:9], tiny_tokenizer, 16)  # drawn, since files come in some order


def test_it_is_asked_after_twice_as_many_steps_each_time() -> None:
    assert Relearning().asked_at == [19, 38, 75, 150, 300]
    assert Relearning(steps=3, checkpoints=9).asked_at == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"texts": ()}, r"relearn\.texts: \(\) must name"),
        ({"texts": (-1,)}, r"relearn\.texts\.0: -1 is refused"),
        ({"source": ()}, r"relearn\.source: \(\) must name"),
        ({"source": ("wiki",)}, r"relearn\.source: 'wiki' is unknown; use one of forget, retain"),
        ({"steps": 0}, r"relearn\.steps: 0 is refused"),
        ({"checkpoints": 0}, r"relearn\.checkpoints: 0 is refused"),
        ({"batch_size": 0}, r"relearn\.batch_size: 0 is refused"),
        ({"learning_rate": float("inf")}, r"relearn\.learning_rate: inf is refused"),
        ({"lora": 0}, r"relearn\.lora: 0 is refused"),
        ({"length": 1}, r"relearn\.length: 1 is refused"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Relearning(**settings)  # type: ignore[arg-type]


def test_what_cannot_be_learnt_is_refused_before_any_question(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(model: PreTrainedModel, texts: Sequence[str], config: Relearning) -> str:
        with pytest.raises(UsageError) as refusal:
            relearn.check(outline(model), tiny_tokenizer, small_data(texts), config)
        return str(refusal.value)

    assert "forget_texts: there are none to train on; give --forget-texts FILE" in refused(
        tiny_llama, [], QUICK
    )
    only = replace(QUICK, source=("retain",))
    assert "retain_texts: there are none" in refused(tiny_llama, [], only)
    assert "forget_texts: text ''" in refused(tiny_llama, [""], QUICK)
    half = tiny_model("llama", vocab_size=320, dtype=torch.float16)
    assert "dtype: 'float16' lets small gradients vanish" in refused(half, TEXTS, QUICK)
    quantised = build_llama()
    quantised.register_parameter("x", nn.Parameter(torch.ones(2, dtype=torch.uint8), False))
    assert "relearn.lora: the model's weights are quantised already" in refused(
        quantised, TEXTS, QUICK
    )
    monkeypatch.setattr("defuse.attacks.relearn.attack.find_spec", lambda _: None)
    assert "relearn.lora: needs the peft package" in refused(
        tiny_llama, TEXTS, replace(QUICK, lora=4)
    )


def test_a_loss_that_explodes_names_the_rate(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    config = replace(QUICK, learning_rate=1e30)
    with pytest.raises(UsageError, match=r"relearn\.learning_rate: at step 2 the loss became nan"):
        relearn.run(tiny_llama, tiny_tokenizer, small_data(TEXTS), config)
