"""Recipes: from YAML to the dataclasses that the library runs on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from defuse.methods import METHODS, RETAIN_LOSSES
from defuse.unlearning.config import Topic, Training, Unlearning, check_strength
from defuse.unlearning.defaults import DEFAULTS, default_retain, with_defaults
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.optimiser import Optimiser
from defuse.unlearning.recipe_fields import (
    MethodSource,
    RetainSource,
    TopicSource,
    Train,
    method_name,
)
from defuse.unlearning.tokenized import MEASURED_TEXTS, batches_per_topic
from defuse.utils.config import (
    Count,
    Natural,
    Positive,
    check_fields,
    dotted,
    dump,
    parse,
    parse_fields,
    read_fields,
    without_none,
)
from defuse.utils.errors import UsageError

MOST_TOPICS = 1000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run of `defuse unlearn`. `parse` and `load_recipe` fill gaps from the table of defaults."""

    model: str
    revision: str | None = None
    output: str
    method: MethodSource
    layer: Natural = Unlearning.layer
    train: Train = Train()  # noqa: RUF009 (frozen)
    retain: RetainSource
    noise: GaussianNoise | None = None
    topics: Sequence[TopicSource]
    steps: Count
    batch_size: Count = Training.batch_size
    learning_rate: Positive
    seed: int = Training.seed
    shuffle: bool = Training.shuffle
    recompute: bool = Training.recompute
    device: str = "auto"
    dtype: str = "auto"
    mask_padding: bool = Unlearning.mask_padding
    skip_first_token: bool = Unlearning.skip_first_token
    loss_scale: Literal["none", "hidden_variance"] = Unlearning.loss_scale
    master_weights: bool = Unlearning.master_weights
    optimiser: Optimiser | None = None
    checkpoint_every: Natural = 50
    shard: bool = False
    check_up: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def from_fields(cls, given: object, where: str = "") -> "Recipe":
        """A recipe from its YAML form, with the table's values where it has none."""
        filled = _with_defaults(given) if isinstance(given, Mapping) else given
        recipe = parse_fields(cls, filled, where)
        if not recipe.topics:
            raise UsageError(f"{dotted(where, 'topics')}: [] must hold at least one topic")
        if len(recipe.topics) > MOST_TOPICS:
            raise UsageError(
                f"{dotted(where, 'topics')}: are {len(recipe.topics)}; give at most {MOST_TOPICS}, "
                "and put texts into the files of fewer topics"
            )
        names = [topic.name for topic in recipe.topics]
        if len(set(names)) < len(names):
            raise UsageError(f"{dotted(where, 'topics')}: the names {', '.join(names)} must differ")
        for place, topic in enumerate(recipe.topics):
            place = dotted(dotted(where, "topics"), place)
            check_strength(topic.settings, recipe.method.method, place)
        return replace(recipe, topics=tuple(map(recipe._with_defaults, recipe.topics)))

    def _with_defaults(self, topic: TopicSource) -> TopicSource:
        settings = with_defaults(topic.settings, self.method.method, self.retain.build())
        return replace(topic, settings=settings)

    def unlearning(self) -> Unlearning:
        """The method, retain loss and noise; reads the refusals of a method that has a file."""
        return Unlearning(
            self.method.build(),
            self.retain.build(),
            self.noise,
            layer=self.layer,
            train_layers=self.train.layers,
            train_parameters=self.train.parameters,
            lora=self.train.lora,
            loss_scale=self.loss_scale,
            mask_padding=self.mask_padding,
            skip_first_token=self.skip_first_token,
            master_weights=self.master_weights,
        )

    def read_topics(self) -> tuple[Topic, ...]:
        """The topics with their texts, as many as the steps can reach."""
        used = batches_per_topic(self.training(), len(self.topics)) * self.batch_size
        reach = None if self.shuffle else max(used, MEASURED_TEXTS)
        return tuple(topic.build(reach) for topic in self.topics)

    def training(self) -> Training:
        """Steps, batches and learning rate."""
        return Training(
            self.steps,
            self.batch_size,
            self.learning_rate,
            self.seed,
            self.shuffle,
            recompute=self.recompute,
            optimiser=self.optimiser or Optimiser(),
        )

    def to_yaml(self) -> str:
        """The recipe with all defaults written out; `load_recipe` reads it back unchanged."""
        return yaml.safe_dump(without_none(dump(self)), sort_keys=False)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with `field=value` overrides, such as "noise.std=0.1x" or "topics.0.weight=20".

    Raises UsageError, naming the field, its value and the remedy, for the first thing wrong.
    """
    return parse(Recipe, read_fields(path, overrides))


def _with_defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`given` with the table's retain loss, steps and learning rate; wrong values are kept."""
    name = method_name(given.get("method"))
    if name not in METHODS:
        return given
    filled = {"retain": {"loss": default_retain(name)}, **given}
    retain = filled["retain"]
    loss = retain.get("loss") if isinstance(retain, Mapping) else None
    if not (isinstance(loss, str) and loss in RETAIN_LOSSES):
        return filled
    table = DEFAULTS[name, loss]
    return {"steps": table.steps, "learning_rate": table.learning_rate, **filled}
