"""Recipes: YAML to typed fields, and from there to what the library runs on."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import Field, SerializeAsAny, create_model, field_validator, model_validator

from defuse.data.corpora import load_refusals
from defuse.methods import METHODS, RETAIN_LOSSES, Method
from defuse.models.lora import LoRA
from defuse.unlearning.config import Topic, Training, Unlearning
from defuse.unlearning.defaults import DEFAULTS, default_retain, strength_field
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.tokenized import MEASURED_TEXTS, batches_per_topic
from defuse.unlearning.topic_fields import TopicFields
from defuse.utils.config import Fields, Multiple, Number, Whole, parse, read_fields
from defuse.utils.errors import UsageError
from defuse.utils.scales import multiple


class MethodFields(Fields):
    """A method's name; each method's subclass has its own fields beside it."""

    name: str

    def build(self, read: Callable[[str], tuple[str, ...]] = load_refusals) -> Method:
        """The method; `read` turns the file of refusals, where one is named, into texts."""
        own = self.model_dump(exclude={"name"}, exclude_none=True)
        if "refusals" in own:
            own["refusals"] = read(own["refusals"])
        return METHODS[self.name](**own)


def _fields_of(method: type) -> type[MethodFields]:
    """A method's own fields and defaults, read off its dataclass; refusals come from a file."""
    hints = get_type_hints(method)
    fields: dict[str, Any] = {
        field.name: _as_written(hints[field.name], field.default)
        for field in dataclasses.fields(method)
    }
    return create_model(method.__name__, __base__=MethodFields, **fields)


def _as_written(hint: object, default: object) -> tuple[Any, Any]:
    """A dataclass field's type and default in a recipe; texts left out are the dataclass's own."""
    required = default is dataclasses.MISSING
    if hint == tuple[str, ...]:
        return (str, ...) if required else (str | None, None)
    return (Number if hint is float else hint), (... if required else default)


METHOD_FIELDS = {name: _fields_of(method) for name, method in METHODS.items()}


class RetainFields(Fields):
    loss: str

    @field_validator("loss")
    @classmethod
    def _exists(cls, value: str) -> str:
        if value not in RETAIN_LOSSES:
            raise ValueError(f"{value!r} is unknown; use one of {', '.join(RETAIN_LOSSES)}")
        return value


class NoiseFields(Fields):
    """RNA: exactly one of the two."""

    std: Multiple | None = None
    variance: Number | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "NoiseFields":
        self.build()
        return self

    def build(self) -> GaussianNoise:
        return GaussianNoise(self.std, self.variance)


class LoraFields(Fields):
    """LoRA's factors; `merge` writes a whole checkpoint with them in it, not an adapter."""

    rank: Whole = LoRA.rank
    alpha: Number = LoRA.alpha
    merge: bool = False

    def build(self) -> LoRA:
        return LoRA(self.rank, self.alpha)


class TrainFields(Fields):
    """What is trained; None is the library's choice (`Unlearning`)."""

    layers: list[int] | Literal["all"] | None = None
    parameters: str | list[str] | None = None
    lora: LoraFields | None = None


class Recipe(Fields):
    """What `defuse unlearn` is told, every gap filled from the table of defaults."""

    model: str
    revision: str | None = None
    output: str
    method: SerializeAsAny[MethodFields]
    layer: Annotated[int, Field(ge=0)] = Unlearning.layer
    train: TrainFields = TrainFields()
    retain: RetainFields
    noise: NoiseFields | None = None
    topics: Annotated[list[TopicFields], Field(min_length=1)]
    steps: Whole
    batch_size: Whole = Training.batch_size
    learning_rate: Annotated[Number, Field(gt=0)]
    seed: int = Training.seed
    shuffle: bool = Training.shuffle
    recompute: bool = Training.recompute
    device: str = "auto"
    dtype: str = "auto"
    mask_padding: bool = Unlearning.mask_padding
    skip_first_token: bool = Unlearning.skip_first_token
    loss_scale: Literal["none", "hidden_variance"] = Unlearning.loss_scale
    master_weights: bool = Unlearning.master_weights
    checkpoint_every: Annotated[int, Field(ge=0)] = 50
    shard: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: object) -> object:
        return _with_defaults(given) if isinstance(given, Mapping) else given

    @field_validator("method", mode="before")
    @classmethod
    def _own_fields(cls, value: object) -> MethodFields:
        name = _name_in({"method": value}, "method", "name")
        if name not in METHOD_FIELDS:
            known = ", ".join(METHODS)
            raise ValueError(f"{value!r} names no method; write {{name: …}} with one of {known}")
        fields = parse(METHOD_FIELDS[name], value, "method")
        fields.build(lambda source: (source,))  # the method's own refusals of values
        return fields

    @model_validator(mode="after")
    def _topics_fit(self) -> "Recipe":
        for place, topic in enumerate(self.topics):
            for field in ("coefficient", "scale"):
                if (value := getattr(topic, field)) is not None:
                    _check_strength(f"topics.{place}.{field}", value, self.method.name)
        names = [topic.name for topic in self.topics]
        if len(set(names)) < len(names):
            raise UsageError(f"topics: the names {', '.join(names)} must differ")
        return self

    @property
    def merges(self) -> bool:
        """Whether LoRA's factors end in the matrices, and not in an adapter."""
        return self.train.lora is not None and self.train.lora.merge

    def unlearning(self) -> Unlearning:
        """The method, retain loss and noise; reads the refusals of a method that has any."""
        same = {"layer", "mask_padding", "skip_first_token", "loss_scale", "master_weights"}
        return Unlearning(
            self.method.build(),
            RETAIN_LOSSES[self.retain.loss](),
            None if self.noise is None else self.noise.build(),
            train_layers=self.train.layers,
            train_parameters=self.train.parameters,
            lora=None if self.train.lora is None else self.train.lora.build(),
            **self.model_dump(include=same),
        )

    def read_topics(self) -> tuple[Topic, ...]:
        """The topics with their texts, which are read no further than the steps can reach."""
        used = batches_per_topic(self.training(), len(self.topics)) * self.batch_size
        reach = None if self.shuffle else max(used, MEASURED_TEXTS)
        return tuple(topic.build(reach) for topic in self.topics)

    def training(self) -> Training:
        """Steps, batches and learning rate."""
        same = {"steps", "batch_size", "learning_rate", "seed", "shuffle", "recompute"}
        return Training(**self.model_dump(include=same))

    def to_yaml(self) -> str:
        """The whole recipe, defaults written out; `load_recipe` reads it back as it was."""
        return yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with `field=value` overrides, such as "noise.std=0.1x" or "topics.0.weight=20".

    Raises UsageError, naming the field, its value and the remedy, for the first thing wrong.
    """
    return parse(Recipe, read_fields(path, overrides), "")


def _with_defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`given` with the table's values where it has none; what is wrong is left as it is."""
    name = _name_in(given, "method", "name")
    if name not in METHODS:
        return given
    filled = {"retain": {"loss": default_retain(name)}, **given}
    table = DEFAULTS.get((name, _name_in(filled, "retain", "loss")))
    if table is None:
        return filled
    filled = {"steps": table.steps, "learning_rate": table.learning_rate, **filled}
    field = strength_field(name)
    strength = {} if field is None else {field: table.strength}
    topics = filled.get("topics")
    if isinstance(topics, list):
        filled["topics"] = [
            {"weight": table.weight_for(topic.get("name")), **strength, **topic}
            if isinstance(topic, dict)
            else topic
            for topic in topics
        ]
    return filled


def _name_in(given: Mapping[str, Any], field: str, key: str) -> str:
    inner = given.get(field)
    name = inner.get(key) if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else ""


def _check_strength(field: str, value: float | str, method: str) -> None:
    wanted = strength_field(method)
    if not field.endswith(f".{wanted}"):
        remedy = f"which has {wanted!r} instead" if wanted else "which is not steered"
        raise UsageError(f"{field}: {value} does not belong to {method}, {remedy}; remove it")
    multiple(value, field)
