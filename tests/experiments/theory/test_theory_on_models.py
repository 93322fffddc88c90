"""Shifts and gradients against plain forward passes, and `defuse theory` as a user calls it."""

import json
import sys
from pathlib import Path

import pytest
import torch

from defuse import cli
from defuse.evaluate import Settings
from defuse.evaluate.answers import Part
from defuse.experiments.theory.rates import compare_layer
from defuse.experiments.theory.run import quarter_points
from defuse.experiments.theory.shifts import (
    answer_loss,
    encode_right,
    measure_flips,
    measure_shifts,
    start,
)
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.questions import FORGET_TOKEN, Perturbation, Question
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.schemas import validate

QUESTIONS = tuple(
    Question(f"q{i}", f"What does the cat number {i} see?", ("bird", "tree", "moon", "cat"), i % 4)
    for i in range(24)
)
PERTURBATION = Perturbation(("mumps", "rabies"), "before")
LOADED = LoadedModel(build_llama(), build_tokenizer(), "tiny")


@pytest.mark.parametrize("score", ["letters", "cloze"])
def test_states_and_shifts_are_those_of_plain_forward_passes(score):
    part = Part(QUESTIONS[:3], Settings(score, seed=0))
    shifts = measure_shifts(LOADED, part, PERTURBATION)
    assert shifts.shift.shape == shifts.gradient.shape == (4, 3, 32)
    for number, question in enumerate(part.questions):
        states = []
        perturbed = PERTURBATION.variants(question, 0)[FORGET_TOKEN]
        for request in encode_right([question, perturbed], part.settings, LOADED):
            ids = torch.tensor([request.context])
            with torch.no_grad():
                seen = LOADED.model(ids, output_hidden_states=True).hidden_states
            states.append(torch.stack([each[0, -1] for each in seen[1:-1]]))  # type: ignore[index]
        # Hugging Face gives the last layer's states behind the final norm.
        expected = states[1] - states[0]
        torch.testing.assert_close(shifts.shift[:-1, number], expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_the_loss_s_slope_along_any_direction():
    part, decoder = Part(QUESTIONS[:2], Settings("cloze")), Decoder(LOADED.model)
    shifts = measure_shifts(LOADED, part, PERTURBATION)
    _, request = encode_right(part.questions, part.settings, LOADED)
    hidden, inputs, last = start(decoder, request)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    for layer in (0, 2):
        with torch.no_grad():
            state = decoder.run(hidden, inputs, 0, layer + 1)
            rows = state.repeat(2, 1, 1)
            rows[0, last] += 1e-2 * direction
            rows[1, last] -= 1e-2 * direction
            up, down = answer_loss(
                decoder, decoder.run(rows, inputs, layer + 1, 4), request, last
            ).tolist()
        slope = (shifts.gradient[layer, 1] @ direction).item()
        assert (up - down) / 2e-2 == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_the_loss_is_the_answer_s_negative_log_probability():
    (request,) = encode_right(QUESTIONS[2:3], Settings("cloze"), LOADED)
    decoder = Decoder(LOADED.model)
    with torch.no_grad():
        hidden, inputs, last = start(decoder, request)
        loss = answer_loss(decoder, decoder.run(hidden, inputs, 0, 4), request, last)
        ids = torch.tensor([[*request.context, *request.continuation]])
        log_probs = LOADED.model(ids).logits[0].log_softmax(-1)
    first = len(request.context)
    expected = -sum(
        log_probs[first + i - 1, token].item() for i, token in enumerate(request.continuation)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_little_noise_reverses_no_effect_and_much_noise_reverses_many():
    part = Part(QUESTIONS, Settings("letters", seed=0))
    shifts = measure_shifts(LOADED, part, PERTURBATION)
    found = [
        compare_layer(shifts, 1, std, measure_flips(LOADED, part, shifts, 1, std))
        for std in (1e-5, 10.0)
    ]
    assert found[0].measured.value < 0.05
    assert found[0].isotropic < 0.01
    assert found[1].measured.value > 0.2
    assert found[1].isotropic > 0.4
    for report in found:
        assert 0 <= report.systematic <= 1
        assert report.general <= 0.5
        assert abs(report.monte_carlo[0] - report.general) < 5 * report.monte_carlo[1] + 1e-3
        assert report.normality is not None


def test_layers_a_quarter_a_half_and_three_quarters_up():
    assert quarter_points(32) == (8, 16, 24)
    assert quarter_points(2) == (0, 1)


def test_the_command_writes_table_figure_and_data(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": q.stem, "choices": q.choices, "answer": q.answer} for q in QUESTIONS[:6]]
    Path("q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("terms.txt").write_text("mumps\nrabies\n")
    model = str(tiny_model_folder)
    command = ["defuse", "theory", model, "--reference", model, "--questions", "q.jsonl"]
    command += ["--perturb", "terms.txt", "--layers", "1", "--noise-std", "1x", "--out", "found"]

    def call(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0)

    assert call("--layers", "9") == 2
    assert "layers: 9 is not a block of" in capsys.readouterr().err
    assert call("--noise-std", "0") == 2
    assert not Path("found").exists()
    assert call() == 0
    data = json.loads(Path("found/theory.json").read_text())
    validate("theory", data)
    assert data["fingerprints"]["model"] == data["fingerprints"]["reference"]
    assert [report["layer"] for report in data["reports"]["model"]] == [1]
    assert data["reports"]["model"] == data["reports"]["reference"]  # one model, twice
    for name in ("theory.md", "theory.png", "theory.svg"):
        assert Path("found", name).stat().st_size > 100
