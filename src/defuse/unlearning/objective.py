"""The objective of each topic: all its numbers, resolved before the first step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from defuse.data.collate import TextBatch
from defuse.methods import RepresentationMethod, Steering
from defuse.methods.base import draw_direction
from defuse.unlearning.batches import StepBatches
from defuse.unlearning.config import Unlearning
from defuse.unlearning.hidden_statistics import HiddenStatistics, hidden_statistics
from defuse.unlearning.reference import ReferenceModel
from defuse.unlearning.tokenized import MEASURED_TEXTS, Corpus, EncodedTopic
from defuse.utils.random import generator
from defuse.utils.scales import multiple, resolve


@dataclass(frozen=True)
class Objective:
    """A topic's numbers: what `Topic` gives as a multiple is a plain number here.

    `noise`: RNA's standard deviation by layer; empty without RNA. `hidden_scale` divides
    hidden-state losses (1, or the hidden variance per unit).
    """

    name: str
    steering: Steering | None
    weight: float
    noise: Mapping[int, float] = field(default_factory=dict)
    hidden_scale: float = 1.0


def make_objectives(
    reference: ReferenceModel, unlearning: Unlearning, batches: StepBatches
) -> list[Objective]:
    """Draw each topic's direction, and measure the reference's hidden states where needed."""
    measure = _Measurement(reference, unlearning, batches)
    return [measure.objective(topic) for topic in batches.topics]


@dataclass(frozen=True)
class _Measurement:
    reference: ReferenceModel
    unlearning: Unlearning
    batches: StepBatches

    def objective(self, topic: EncodedTopic) -> Objective:
        scaled = self.unlearning.loss_scale == "hidden_variance"
        assert topic.topic.weight is not None  # noqa: S101 (defaults.with_defaults)
        return Objective(
            topic.topic.name,
            self.steering(topic),
            topic.topic.weight,
            self.noise(topic),
            self.statistics(topic.retain).variance if scaled else 1.0,
        )

    def noise(self, topic: EncodedTopic) -> dict[int, float]:
        """The noise's standard deviation at each noised layer."""
        noise = self.unlearning.noise
        if noise is None:
            return {}
        relative = isinstance(noise.std, str)
        return {
            layer: noise.resolve_std(self.statistics(topic.retain, layer).std if relative else 1.0)
            for layer in self.unlearning.noised_layers
        }

    def steering(self, topic: EncodedTopic) -> Steering | None:
        """The direction and strength of a representation method; None for preference methods."""
        method, training = self.unlearning.method, self.batches.training
        if not isinstance(method, RepresentationMethod):
            return None
        decoder, field = self.reference.decoder, method.strength_field
        rng = generator(training.seed, "steering", topic.topic.name)
        direction = draw_direction(method.vector, decoder.hidden_size, rng)
        strength = getattr(topic.topic, field)
        in_norms = field == "coefficient" and multiple(strength, field) is not None
        norm = self.statistics(topic.forget).mean_norm if in_norms else 1.0
        first = self.batches.collate(topic.forget, topic.forget.rows(0, training))
        return Steering(
            direction.to(decoder.device),
            resolve(strength, norm, field),
            hidden_statistics([self.hidden_and_mask(first)]).mean_norm,
        )

    def statistics(self, corpus: Corpus, layer: int | None = None) -> HiddenStatistics:
        """Over the counted tokens of the first `MEASURED_TEXTS` texts; None is layer l."""
        chosen = range(min(MEASURED_TEXTS, corpus.count))
        singles = (self.batches.collate(corpus, [row]) for row in chosen)
        return hidden_statistics(self.hidden_and_mask(batch, layer) for batch in singles)

    def hidden_and_mask(self, batch: TextBatch, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """The reference's hidden states at a layer (None is l), and which tokens count."""
        stop = (self.unlearning.layer if layer is None else layer) + 1
        return self.reference.hidden(self.reference.start(batch), stop), batch.counted
