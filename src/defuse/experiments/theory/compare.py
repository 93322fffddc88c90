"""Predicted flip rates beside what the model does when noise is added to the shifted state."""

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

NOISE_DRAWS = 4  # of noise for each question
MONTE_CARLO_DRAWS = 2000  # for each question
FEWEST_FOR_NORMALITY = 20


@dataclass(frozen=True)
class LayerReport:
    """One layer: the shift, whether it is normal, and flip rates (shares) at one noise.

    `shift_variance` (η): mean square of ε per unit. `systematic`: the share of it that lies in the
    mean shift. `normality` p-value of the standardised effects g·ε (D'Agostino and Pearson; None
    for fewer than 20 questions). Predicted: `isotropic` from η alone, `general` from the effects'
    mean and variance, averaged over questions, `monte_carlo` the same by drawing, with its standard
    error. `measured`: noise on the shifted state of the model itself turned the change of the loss
    around.
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
    """All figures of one layer; `questions` are the clean ones that `shifts` were measured on."""
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
    flipped = _turned_around(loaded, questions, settings, shifts, layer, noise_std)
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
    """Of each question's g: the effect's mean g·μ and variance gᵀΣg, and the noise's ν·‖g‖²."""
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
def _turned_around(
    loaded: LoadedModel,
    questions: Sequence[Question],
    settings: Settings,
    shifts: Shifts,
    layer: int,
    noise_std: float,
) -> Tensor:
    """Whether noise turned the loss's change around, a value for each question and draw."""
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
