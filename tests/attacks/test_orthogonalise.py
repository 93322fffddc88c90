"""A planted direction is found and taken away, by hooks and in the weights; no other does it."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defuse.attacks import AttackData, Result
from defuse.attacks.orthogonalise import attack as orthogonalise
from defuse.attacks.orthogonalise.ablation import Removal, means, with_weights, without
from defuse.attacks.orthogonalise.attack import Directions, Orthogonalisation, find_directions
from defuse.attacks.passages import passages
from defuse.data.collate import TextBatch, collate
from defuse.data.text import Encoded
from defuse.models.decoder import Decoder
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.helpers.planted import LAYER, check_resumes, few, lab, suppressed, untouched

IDS = torch.tensor([[3, 9, 4, 17, 5, 22, 8], [7, 7, 30, 2, 41, 6, 19]])


@cache
def found() -> Result:
    base, tokenizer, data = lab()
    model, _ = suppressed()
    with untouched(model, base):
        return orthogonalise.run(model, tokenizer, data, reference=base)


def accuracy(result: Result, condition: str, name: str = "forget") -> float:
    (one,) = (each for each in result.conditions if each.name == condition)
    return one.effects[name].after.accuracy.value


@pytest.mark.parametrize(
    "way", ["all", f"each, layer {LAYER}", "strongest", "weights", "each, chosen layer"]
)
def test_without_the_planted_direction_the_answers_are_back(way: str) -> None:
    assert found().conditions[0].effects["forget"].before.accuracy.value < 0.5
    assert accuracy(found(), way) == 1.0


@pytest.mark.parametrize("way", ["all", "strongest", "weights"])
def test_a_random_direction_brings_nothing_back(way: str) -> None:
    assert accuracy(found(), f"{way}, random direction") < 0.5
    assert accuracy(found(), f"{way}, random direction", "retain") > 0.9


def test_nothing_happens_below_the_planted_layer() -> None:
    for layer in range(LAYER):
        (one,) = (each for each in found().conditions if each.name == f"each, layer {layer}")
        assert one.numbers["strength"] == 0
        assert one.effects["forget"].logprob.value == 0
    (strongest,) = (each for each in found().conditions if each.name == "strongest")
    assert strongest.numbers["layer"] == LAYER


def test_the_planted_direction_is_the_one_that_is_found() -> None:
    base, tokenizer, data = lab()
    model, planted = suppressed()
    how = Orthogonalisation(texts=24, length=64, batch_size=5, seed=0)
    batches = passages(model, tokenizer, data, "forget", how)
    states = {
        who: means(each, batches).tolist() for who, each in (("model", model), ("reference", base))
    }
    unit = find_directions({"forget": states}).unit[LAYER]
    assert abs(float(unit @ planted.double())) > 0.999


@pytest.mark.parametrize("way", ["all", "strongest"])
def test_the_component_can_go_back_to_the_reference_s_mean(way: str) -> None:
    base, tokenizer, data = lab()
    model, _ = suppressed()
    config = Orthogonalisation(ways=(way,), to="reference mean")  # type: ignore[arg-type]
    result = orthogonalise.run(model, tokenizer, data, config, reference=base)
    assert accuracy(result, way) == 1.0


def test_a_model_that_is_its_reference_stays_as_it_is() -> None:
    base, tokenizer, _ = lab()
    result = orthogonalise.run(base, tokenizer, few(), reference=base)
    for condition in result.conditions:
        for effect in condition.effects.values():
            assert effect.logprob.value == pytest.approx(0, abs=1e-6)
            assert effect.before.accuracy == effect.after.accuracy


def test_what_differs_on_retain_texts_too_is_taken_off() -> None:
    def rows(*values: float) -> list[list[float]]:
        return [list(values)]

    both = {
        "forget": {"model": rows(3, 4, 1), "reference": rows(0, 0, 1)},
        "retain": {"model": rows(0, 5, 0), "reference": rows(0, 1, 0)},
    }
    directions = find_directions(both)
    assert directions.unit.tolist() == [[1, 0, 0]]
    assert directions.strength.tolist() == [3]
    alone = find_directions({"forget": both["forget"]})
    assert alone.unit.tolist() == [[0.6, 0.8, 0]]


def test_source_forget_minus_retain_finds_the_planted_direction_too() -> None:
    base, tokenizer, data = lab()
    model, _ = suppressed()
    config = Orthogonalisation(ways=("weights",), source="forget - retain")
    result = orthogonalise.run(model, tokenizer, data, config, reference=base)
    assert accuracy(result, "weights") == 1.0


def states(model, ids: Tensor = IDS) -> list[Tensor]:
    decoder = Decoder(model)
    with torch.no_grad():
        hidden, inputs = decoder.embed(ids)
        seen = [hidden]
        for layer in range(decoder.num_layers):
            seen.append(decoder.run(seen[-1], inputs, layer, layer + 1))
    return seen


def unit_of(size: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_write_nothing_along_the_direction(kind: str, dtype: torch.dtype) -> None:
    model = tiny_model(kind, dtype=dtype)
    unit = unit_of(32)
    with untouched(model):
        written = with_weights(model, unit)
    bound = 1e-4 if dtype == torch.float32 else 0.1
    for before, after in zip(states(model), states(written), strict=True):
        along = after.double() @ unit
        assert along.abs().max() < bound * after.double().norm(dim=-1).max()
        assert (before.double() @ unit).abs().max() > 10 * along.abs().max()
    assert written.get_output_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", CONFIGS)
def test_hooks_take_the_component_of_a_block_and_leave_what_is_asked(kind: str) -> None:
    model = tiny_model(kind)
    unit = unit_of(32)
    with untouched(model):
        changed = without(model, {1: Removal(unit, 0.5)})
        seen, plain = states(changed), states(model)
    torch.testing.assert_close(seen[1], plain[1])
    along = plain[2].double() @ unit
    expected = plain[2].double() + (0.5 - along)[..., None] * unit
    torch.testing.assert_close(seen[2].double(), expected, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 10))
def test_random_directions_have_length_one_where_anything_differs(seed: int) -> None:
    strength = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    directions = Directions(torch.zeros(3, 16).double(), strength, torch.zeros(3, 16).double())
    lengths = directions.random(seed).unit.norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_means_are_those_of_plain_passes_without_first_tokens_and_padding(kind: str) -> None:
    model = tiny_model(kind)
    texts = [(3, 9, 4, 17, 5), (8, 2), (7, 7, 30)]
    expected = torch.cat(
        [torch.stack(states(model, torch.tensor([text]))[1:])[:, 0, 1:] for text in texts], dim=1
    )
    found_means = means(model, [batch_of(texts[:2]), batch_of(texts[2:])])
    torch.testing.assert_close(found_means, expected.double().mean(dim=1), rtol=1e-4, atol=1e-5)


def batch_of(texts: list[tuple[int, ...]]) -> TextBatch:
    encoded = [Encoded(text, 1) for text in texts]
    return collate(encoded, [("x", i) for i in range(len(texts))], pad_token_id=0)


def test_texts_are_drawn_once_each_and_cut() -> None:
    model, tokenizer, data = lab()
    texts = [f"Sentence number {number}." for number in range(30)]
    given_texts = replace(data, forget_texts=texts)
    how = Orthogonalisation(texts=10, length=6, batch_size=4, seed=1)
    batches = passages(model, tokenizer, given_texts, "forget", how)
    rows = [row for batch in batches for _, row in batch.items]
    assert len(set(rows)) == len(rows) == 10
    assert max(batch.input_ids.shape[1] for batch in batches) <= 6


def test_questions_stand_in_with_their_letters_where_they_fit() -> None:
    model, tokenizer, data = lab()
    long = replace(data.retain[3], stem="word " * 60)
    asked = replace(data, retain=[*data.retain[:3], long])
    how = Orthogonalisation(texts=9, length=60, batch_size=4, seed=1)
    (batch,) = passages(model, tokenizer, asked, "retain", how)
    rows = [row for _, row in batch.items]
    assert sorted(rows) == [0, 1, 2]
    letters = ["ABCD"[asked.retain[row].answer] for row in rows]
    assert [str(tokenizer.decode(label)).strip() for label in batch.labels] == letters
    with pytest.raises(UsageError, match="retain: no question with its answer fits into 4 tokens"):
        passages(model, tokenizer, asked, "retain", replace(how, length=4))


def test_a_killed_attack_goes_on(tmp_path: Path) -> None:
    base, tokenizer, _ = lab()
    model, _ = suppressed()
    config = Orthogonalisation(ways=("all", "weights"))
    check_resumes(
        partial(orthogonalise.run, model, tokenizer, few(), config, reference=base),
        tmp_path,
        model,
        base,
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ways": ()}, "ways"),
        ({"ways": ("some",)}, "ways"),
        ({"source": "both"}, "source"),
        ({"to": "one"}, "to"),
        ({"to": "reference mean"}, "take 'weights' out"),
        ({"texts": 0}, "texts: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"length": 1}, "length: 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"orthogonalise\..*{sentence}"):
        Orthogonalisation(**settings)


def test_a_missing_or_other_reference_is_refused_before_any_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, tokenizer, data = lab()
    monkeypatch.setattr(orthogonalise, "ask_all", None)
    with pytest.raises(UsageError, match="reference: missing"):
        orthogonalise.run(base, tokenizer, data)
    with pytest.raises(UsageError, match="reference: is llama with 4 layers of 32 units"):
        orthogonalise.run(base, tokenizer, data, reference=build_llama())
    empty = AttackData(data.forget, data.retain, forget_texts=[""])
    with pytest.raises(UsageError, match="leave nothing to predict"):
        orthogonalise.run(build_llama(), build_tokenizer(), empty, reference=build_llama())
