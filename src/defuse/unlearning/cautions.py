"""Sentences about settings that will hardly work, found before the first step."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from defuse.methods import Method
from defuse.models.decoder import Decoder
from defuse.unlearning.config import Training
from defuse.unlearning.objective import Objective
from defuse.unlearning.tokenized import Corpus, EncodedTopic

# The published settings are for models of 7B parameters; below this number they change too little.
SMALL_MODEL = 1_000_000_000
# Learning rate × steps of the published settings: what AdamW moves a weight by at most.
PUBLISHED_RATE, PUBLISHED_MOVE = 5e-5, 0.025
MOST_USES = 20  # of a retain text
SENTENCE_TOKENS = 24  # shorter texts are single sentences
# A steering vector's norm in mean hidden norms: shorter ones hardly move hidden states, longer ones
# break the model.
LEAST_STRENGTH, MOST_STRENGTH = 0.5, 50.0


def about_settings(
    decoder: Decoder, training: Training, topics: Sequence[EncodedTopic]
) -> Iterator[str]:
    """Cautions that need no weights."""
    count = sum(parameter.numel() for parameter in decoder.model.parameters())
    rate, move = training.learning_rate, training.learning_rate * training.steps
    if count < SMALL_MODEL and rate <= PUBLISHED_RATE and move <= PUBLISHED_MOVE:
        yield (
            f"learning_rate: {rate:g} for {training.steps} steps is meant for models of 7B "
            f"parameters; this one has {count / 1e6:.3g}M and will hardly change, try 1e-3"
        )
    for topic in topics:
        yield from _about_texts(topic, training, len(topics))


def about_strength(objective: Objective, method: Method) -> Iterator[str]:
    """A caution about a steering vector that does not fit the model's hidden states."""
    steering = objective.steering
    if steering is None or getattr(method, "strength_field", "") != "coefficient":
        return
    share = steering.strength / steering.first_norm
    if not LEAST_STRENGTH <= share <= MOST_STRENGTH:
        yield (
            f"topics.{objective.name}.coefficient: {steering.strength:g} is {share:.2g} times the "
            f"mean norm of this model's hidden states ({steering.first_norm:.3g}); write 4x for "
            "four times that norm"
        )


def _about_texts(topic: EncodedTopic, training: Training, topics: int) -> Iterator[str]:
    where = f"topics.{topic.topic.name}"
    uses = training.steps * training.batch_size / topics / topic.retain.count
    if uses > MOST_USES:
        yield (
            f"{where}.retain: each of its {topic.retain.count} rows is used {uses:.0f} times, so "
            "the model is kept on little else; give more texts, or fewer steps"
        )
    if not topic.topic.packed:
        for kind, corpus in (("forget", topic.forget), ("retain", topic.retain)):
            if (mean := _mean_tokens(corpus)) < SENTENCE_TOKENS:
                yield (
                    f"{where}.{kind}: its texts have {mean:.0f} tokens on average; packed: true "
                    "joins single sentences into longer rows"
                )


def _mean_tokens(corpus: Corpus) -> float:
    return fmean(len(text.ids) for text in corpus.texts.values())
