"""Predicted flip rates next to those of the model, with noise on its shifted hidden state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import normaltest
from torch import Tensor

from defuse.evaluate import Interval, Settings, wilson
from defuse.experiments.theory.rates import flip_rate, isotropic_flip_rate, monte_carlo_flip_rate
from defuse.experiments.theory.shifts import Shifts, answer_loss, request_of, start
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.models.load import LoadedModel
from defuse.questions import Question
from defuse.utils.random import generator

NOISE_DRAWS = 4  # for each question
MONTE_CARLO_DRAWS = 2000  # for each question
FEWEST_FOR_NORMALITY = 20


@dataclass(frozen=True)
class LayerReport:
    """The shift at one layer, a test of its normality, and flip rates (shares) at one noise.

    `shift_variance` (η): mean square of ε per unit. `systematic`: the share of η that is due to the
    mean shift. `normality`: p-value for the effects g·ε/‖g‖ (D'Agostino and Pearson; None for fewer
    than 20 questions). Predictions: `isotropic` from η alone; `general` from the mean and variance
    of the effects, averaged over questions; `monte_carlo` estimates the same by sampling, with its
    standard error. `measured`: how often noise on the shifted state reversed the sign of the loss
    change in the model.
    """

    layer: int
    noise_std: float
    shift_variance: float
    systematic: float
    normality: float | None
    isotropic: float
    general: float
    monte_carlo: tuple[float, float]
    measured: Interval


def compare_layer(
    loaded: LoadedModel,
    questions: Sequence[Question],
    settings: Settings,
    shifts: Shifts,
    layer: int,
    noise_std: float,
) -> LayerReport:
    """Compute the report of one layer; `shifts` belong to `questions` without a forget-token."""
    shift, gradient = (each[layer].double() for each in (shifts.shift, shifts.gradient))
    variance = shift.square().mean().item()
    mean = shift.mean(dim=0)
    effects = _effects(shift, gradient, noise_std**2)
    rates = [flip_rate(*each) for each in effects]
    drawn = [
        monte_carlo_flip_rate(*each, draws=MONTE_CARLO_DRAWS, seed=number)
        for number, each in enumerate(effects)
    ]
    error = math.sqrt(sum(error**2 for _, error in drawn)) / len(drawn)
    flipped = _flipped(loaded, questions, settings, shifts, layer, noise_std)
    return LayerReport(
        layer,
        noise_std,
        variance,
        mean.square().mean().item() / variance,
        _normality(shifts.effects(layer)),
        isotropic_flip_rate(variance, noise_std**2),
        sum(rates) / len(rates),
        (sum(rate for rate, _ in drawn) / len(drawn), error),
        wilson(int(flipped.sum()), len(flipped)),
    )


def _effects(
    shift: Tensor, gradient: Tensor, noise_variance: float
) -> list[tuple[float, float, float]]:
    """For each question's g: mean g·μ and variance gᵀΣg of the effect, and the noise's ν·‖g‖²."""
    mean = shift.mean(dim=0)
    centred = gradient @ (shift - mean).T  # (questions by gradient, questions by shift)
    spread = centred.square().sum(dim=1) / max(1, len(shift) - 1)
    means, norms = gradient @ mean, gradient.square().sum(dim=1)
    table = torch.stack([means, spread, noise_variance * norms], dim=1)
    return [(float(m), float(s), float(n)) for m, s, n in table]


def _normality(effects: Tensor) -> float | None:
    enough = len(effects) >= FEWEST_FOR_NORMALITY
    return float(normaltest(effects.numpy()).pvalue) if enough else None


@torch.no_grad()
def _flipped(
    loaded: LoadedModel,
    questions: Sequence[Question],
    settings: Settings,
    shifts: Shifts,
    layer: int,
    noise_std: float,
) -> Tensor:
    """Whether noise reverses the sign of the loss change, for each question and draw of noise."""
    decoder, found = Decoder(loaded.model), []
    with frozen_model(loaded.model):
        for number, question in enumerate(questions):
            request = request_of(question, loaded, settings)
            hidden, inputs, last = start(decoder, request)
            hidden = decoder.run(hidden, inputs, 0, layer + 1)
            rows = hidden.expand(2 + NOISE_DRAWS, -1, -1).clone()
            rng = generator(settings.seed, "theory", layer, question.id)
            noise = torch.randn(NOISE_DRAWS, hidden.shape[-1], generator=rng)
            moved = shifts.shift[layer, number]
            rows[1:, last] += moved.to(rows)
            rows[2:, last] += (noise_std * noise).to(rows)
            final = decoder.run(rows, inputs, layer + 1, decoder.num_layers)
            losses = answer_loss(decoder, final, request, last)
            without, with_noise = losses[1] - losses[0], losses[2:] - losses[0]
            found.append(without * with_noise < 0)
    return torch.cat(found)
