"""Lens and probe find the layer where an answer can be read, and nothing where there is none."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from defuse.attacks import AttackData, Result
from defuse.attacks.lens import Lens, probe
from defuse.attacks.lens import attack as lens
from defuse.attacks.lens.letters import LetterPrompt, look, prompts_of
from defuse.attacks.split_half import cross_fit
from defuse.evaluate import MCAnswer, Settings, evaluate_questions
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Question
from defuse.utils.errors import UsageError
from defuse.utils.random import generator
from tests.conftest import build_llama
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.helpers.planted import check_resumes, few, lab, suppressed, topped, untouched
from tests.helpers.tokenizers_on_the_spot import bytes_only

PROMPTS = [
    LetterPrompt(tuple(range(3, 3 + length)), (10, 11, 12, 13), truncated=False)
    for length in (9, 4, 17, 9, 1)
]


@cache
def read_topped() -> Result:
    base, tokenizer, data = lab()
    model = topped()
    with untouched(model, base):
        return lens.run(model, tokenizer, data, Lens(folds=2, shuffles=1), reference=base)


def accuracies(result: Result, kind: str, name: str = "forget") -> list[float]:
    """Of each layer, the embedding first."""
    found = [c for c in result.conditions if c.name.startswith(kind) and "chosen" not in c.name]
    return [each.effects[name].after.accuracy.value for each in found]


@pytest.mark.parametrize("kind", ["lens", "probe"])
@pytest.mark.parametrize("name", ["forget", "retain"])
def test_an_answer_spoilt_by_the_last_layer_is_read_below_it(kind: str, name: str) -> None:
    result = read_topped()
    last = result.conditions[0].effects[name].before.accuracy.value
    assert last < 0.6
    values = accuracies(result, kind, name)
    assert len(values) == 9
    assert max(values[:5]) < 0.6  # the lab's model answers in its blocks 4 and 5
    assert values[5:8] == [1.0, 1.0, 1.0]
    chosen = next(c for c in result.conditions if c.name == f"{kind}, chosen layer")
    assert chosen.effects[name].after.accuracy.value == 1.0
    assert chosen.effects[name].accuracy.p_value < 1e-3
    assert {4.0, 5.0, 6.0} >= set(chosen.numbers.values())


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_a_layer_s_reading_is_what_a_model_that_ends_there_answers(name: str) -> None:
    base, tokenizer, data = lab()
    known = evaluate_questions(LoadedModel(base, tokenizer, "base"), data.sets[name])
    prompts = prompts_of(tokenizer, data.sets[name], data.settings, 256)
    values, _ = look(topped(), prompts)
    for layer in (5, 6):
        expected = [outcome.logprobs for outcome in known.answers[ORIGINAL]]
        torch.testing.assert_close(values[layer + 1], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_the_last_layer_s_reading_is_the_model_s_own_answer() -> None:
    last = next(c for c in read_topped().conditions if c.name == "lens, layer 7")
    for effect in last.effects.values():
        assert effect.before.accuracy == effect.after.accuracy
        assert effect.logprob.value == pytest.approx(0, abs=1e-4)


def test_what_is_drowned_in_the_middle_is_nowhere_read_above() -> None:
    _, tokenizer, data = lab()
    model, _ = suppressed()
    result = lens.run(model, tokenizer, data, Lens(folds=0))
    assert max(accuracies(result, "lens")) < 0.6
    assert max(accuracies(result, "lens", "retain")) == 1.0
    assert not any(c.name.startswith("probe") for c in result.conditions)


def test_curves_hold_every_layer_with_control_and_reference() -> None:
    curves = read_topped().curves
    assert [each.title.split(":")[0] for each in curves] == ["forget", "retain"]
    lines = {line.name: line for line in curves[0].lines}
    kinds = ["lens", "probe", "probe, shuffled labels"]
    assert list(lines) == [*kinds, *(f"reference, {kind}" for kind in kinds)]
    assert list(lines["lens"].x) == [float(layer) for layer in range(-1, 8)]
    assert len(lines["reference, lens"].x) == 7
    control = [value.value for value in lines["probe, shuffled labels"].y]
    assert max(control) < 0.5


@pytest.mark.parametrize("kind", CONFIGS)
def test_states_and_letters_are_those_of_plain_passes(kind: str) -> None:
    model = tiny_model(kind)
    values, states = look(model, PROMPTS, token_budget=20)
    for place, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            output = model(torch.tensor([prompt.ids]), output_hidden_states=True)
        seen = torch.stack([each[0, -1] for each in output.hidden_states[:-1]])
        torch.testing.assert_close(states[:-1, place], seen, rtol=1e-4, atol=1e-4)
        expected = output.logits[0, -1].log_softmax(dim=-1)[list(prompt.letters)]
        torch.testing.assert_close(values[-1, place], expected, rtol=1e-3, atol=1e-3)


def test_half_precision_is_read_in_full() -> None:
    assert look(build_llama(), PROMPTS, with_states=False)[1].numel() == 0
    values, states = look(build_llama().bfloat16(), PROMPTS)
    assert (values.dtype, states.dtype) == (torch.float32, torch.bfloat16)
    assert values.isfinite().all()


def held_out(
    states: torch.Tensor, labels: list[int], fold: list[int], penalty: float
) -> list[list[float]]:
    counts = [4] * len(labels)
    return probe.held_out(probe.features(states, counts), labels, counts, fold, penalty)


def planted_states(rows: int, units: int, signal: float) -> tuple[torch.Tensor, list[int]]:
    draws = torch.Generator().manual_seed(0)
    labels = [row % 4 for row in range(rows)]
    noise = torch.randn(rows, units, generator=draws)
    directions = torch.randn(4, units, generator=draws)
    return noise + signal * directions[labels], labels


@pytest.mark.parametrize("units", [10, 200], ids=["few-units", "more-units-than-rows"])
def test_a_probe_finds_a_planted_letter_and_none_where_there_is_none(units: int) -> None:
    found = {}
    for signal in (0.0, 3.0):
        states, labels = planted_states(80, units, signal)
        fold = probe.deal(labels, 5, generator(0))
        values = torch.tensor(held_out(states, labels, fold, 1.0))
        found[signal] = (values.argmax(dim=1) == torch.tensor(labels)).double().mean().item()
    assert found[3.0] > 0.9
    assert found[0.0] < 0.4


def test_the_shorter_features_give_the_plain_fit_s_predictions() -> None:
    states, labels = planted_states(40, 100, 0.5)
    fold = probe.deal(labels, 4, generator(0))
    found = torch.tensor(held_out(states, labels, fold, 2.0))
    rows = states.numpy().astype(np.float64)
    scaled = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    for number in range(4):
        out = np.array(fold) == number
        plain = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000)
        plain.fit(scaled[~out], np.array(labels)[~out])
        expected = plain.predict_log_proba(scaled[out])
        np.testing.assert_allclose(found[out].numpy(), expected, rtol=2e-2, atol=2e-2)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40).map(lambda some: [*some, *range(4)] * 2),
    st.integers(2, 6),
    st.integers(0, 5),
)
def test_every_label_is_dealt_evenly_and_never_held_out_whole(
    labels: list[int], folds: int, seed: int
) -> None:
    fold = probe.deal(labels, folds, generator(seed))
    for label in range(4):
        counts = [0] * folds
        for one, number in zip(labels, fold, strict=True):
            counts[number] += one == label
        assert max(counts) - min(counts) <= 1
        assert max(counts) < sum(counts)


def outcomes(right: list[bool]) -> list[MCAnswer]:
    question = Question("q", "?", ("a", "b", "c", "d"), 0)
    return [
        MCAnswer(replace(question, id=str(i)), (1.0 if each else -1.0, 0.0, 0.0, 0.0), False)
        for i, each in enumerate(right)
    ]


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=5))
def test_each_half_is_read_as_was_best_on_the_other(table: list[list[bool]]) -> None:
    readings = [outcomes(row) for row in table]
    found, chosen = cross_fit(readings, 0, "x")
    order = torch.randperm(7, generator=generator(0, "halves", "x")).tolist()
    halves = order[:3], order[3:]
    for half, other, best in zip(halves, reversed(halves), chosen, strict=True):
        merits = [sum(row[place] for place in other) for row in table]
        assert merits[best] == max(merits)
        assert all(found[place] is readings[best][place] for place in half)


def test_a_killed_attack_goes_on(tmp_path: Path) -> None:
    base, tokenizer, _ = lab()
    config = Lens(folds=2, shuffles=1)
    check_resumes(partial(lens.run, base, tokenizer, few(), config), tmp_path, base, stops=1)


@pytest.mark.parametrize(
    ("field", "value"), [("folds", 1), ("folds", -1), ("penalty", 0.0), ("shuffles", 0)]
)
def test_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"lens\.{field}: {value}"):
        Lens(**{field: value})


def test_what_cannot_be_read_is_refused_before_any_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tokenizer, data = lab()
    monkeypatch.setattr(lens, "ask_all", None)
    alike = [replace(data.retain[0], id=str(i)) for i in range(4)]
    with pytest.raises(UsageError, match="retain: a letter is right in 0 of 4 questions"):
        lens.run(base, tokenizer, AttackData(data.forget, alike))
    with pytest.raises(UsageError, match="takes several tokens"):
        lens.run(build_llama(vocab_size=600), bytes_only(["a"]), data)
    monkeypatch.setattr(probe, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'defuse-llm\[attacks\]'"):
        lens.run(base, tokenizer, data)


def test_few_shots_are_read_as_they_are_asked() -> None:
    base, tokenizer, data = lab()
    settings = Settings(subject="zoology", few_shot=tuple(data.retain[:2]))
    result = lens.run(base, tokenizer, replace(data, settings=settings), Lens(folds=0))
    last = next(c for c in result.conditions if c.name == "lens, layer 5")
    for effect in last.effects.values():
        assert effect.logprob.value == pytest.approx(0, abs=1e-4)
