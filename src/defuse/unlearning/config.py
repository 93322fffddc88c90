"""What to unlearn and how, as frozen dataclasses; `validate` refuses what does not fit together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from defuse.data.given import given_texts
from defuse.data.text import QuestionAnswer, Text
from defuse.methods import (
    HiddenMSE,
    LogitRetain,
    Method,
    PreferenceMethod,
    RepresentationMethod,
    Retain,
)
from defuse.models.decoder import Decoder
from defuse.models.lora import LoRA, adapted_modules, check_installed, check_rank
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.optimiser import Optimiser
from defuse.utils.config import (
    UNCHECKED,
    Count,
    Length,
    Natural,
    NotNegative,
    Positive,
    Share,
    check_fields,
)
from defuse.utils.errors import UsageError, require
from defuse.utils.scales import Multiple

DEFAULT_MIX = 0.5
METHOD_KINDS = (RepresentationMethod, PreferenceMethod)
RETAIN_KINDS = (HiddenMSE, LogitRetain)


@dataclass(frozen=True)
class Unlearning:
    """A method, the retain loss that protects other knowledge, and the noise that hardens it.

    `layer` (l, 0-based): the block whose output is steered (representation methods), matched
    (HiddenMSE) and noised (RNA, unless `noise` names its own layers). `train_layers`: blocks to
    train; None = l-2, l-1 and l.
    `train_parameters`: their names within a block, such as "mlp.down_proj"; None = the MLP's
    output matrix, "all" = all parameters. `lora` trains factors of the linear modules of these
    names instead; None then means all linear modules. `loss_scale="hidden_variance"` divides
    hidden-state losses by the retain texts' hidden variance per unit. `mask_padding=False`,
    `skip_first_token=False` and `master_weights=False` reproduce the code of the RNA paper
    (docs/methods.md).
    """

    method: Annotated[Method, UNCHECKED]
    retain: Annotated[Retain, UNCHECKED] = HiddenMSE()  # noqa: RUF009 (frozen)
    noise: GaussianNoise | None = None
    layer: Natural = 7
    train_layers: Sequence[int] | Literal["all"] | None = None
    train_parameters: str | Sequence[str] | None = None
    lora: LoRA | None = None
    loss_scale: Literal["none", "hidden_variance"] = "none"
    mask_padding: bool = True
    skip_first_token: bool = True
    master_weights: bool = True

    def __post_init__(self) -> None:
        check_object(self.method, METHOD_KINDS, "method", "RMU()")
        check_object(self.retain, RETAIN_KINDS, "retain", "HiddenMSE()")
        check_fields(self)

    @property
    def ends_at_layer(self) -> bool:
        """Whether no block above `layer` is ever run."""
        hidden_only = isinstance(self.retain, HiddenMSE)
        return hidden_only and isinstance(self.method, RepresentationMethod)

    @property
    def noised_layers(self) -> tuple[int, ...]:
        """The blocks whose outputs get RNA's noise, in order."""
        if self.noise is None:
            return ()
        return tuple(sorted({*(self.noise.layers or (self.layer,))}))

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The blocks to train, in order."""
        if self.train_layers is None:
            return tuple(range(max(0, self.layer - 2), self.layer + 1))
        if self.train_layers == "all":
            return tuple(range(num_layers))
        return tuple(sorted(set(self.train_layers)))


@dataclass(frozen=True)
class Topic:
    """A body of knowledge to forget, and the texts on which the model must not change.

    `coefficient` (c; RMU, RSV) and `scale` (β; Adaptive RMU) are the strength of steering; "4x" is
    four times the mean hidden norm of the forget texts. `weight` (α) multiplies the retain loss.
    None takes the table's value for the method and retain loss (`defuse.unlearning.defaults`).
    Texts are truncated to `forget_length` and `retain_length` tokens; `packed` joins short texts
    and cuts the result into rows of exactly that length. `mix`: the share of retain texts that
    follow a sentence with one of `triggers`, the defence "mixing" (`data.trigger_mixing`); None is
    half of them if there are triggers, else none. Without triggers, the words most typical of the
    forget texts are used.
    """

    name: str
    forget: Annotated[Sequence[Text], UNCHECKED]
    retain: Annotated[Sequence[Text], UNCHECKED]
    forget_length: Length = 512
    retain_length: Length = 512
    coefficient: Multiple | None = None
    scale: Multiple | None = None
    weight: NotNegative | None = None
    packed: bool = False
    triggers: Sequence[str] = ()
    mix: Share | None = None

    def __post_init__(self) -> None:
        where = f"topics.{self.name}"
        check_fields(self, where)
        for name in ("forget", "retain"):
            texts = given_texts(getattr(self, name), f"{where}.{name}")
            object.__setattr__(self, name, texts)  # a generator gives its texts only once

    @property
    def mixed_share(self) -> float:
        """`mix` as a number."""
        return (DEFAULT_MIX if self.triggers else 0.0) if self.mix is None else self.mix


@dataclass(frozen=True)
class Training:
    """The loop: `steps` of AdamW without weight decay, topics alternate, `batch_size` texts each.

    Texts are used in file order and again from the start after the last one; `shuffle` draws a new
    order for every epoch. `keep_gib`: the memory (GiB) for hidden states of the frozen blocks on
    texts that repeat. `recompute`: keep only each block's input between forward and backward pass,
    and run the block again: less memory, more time, the same numbers.
    """

    steps: Count = 500
    batch_size: Count = 4
    learning_rate: Positive = 5e-5
    seed: int = 42
    shuffle: bool = False
    keep_gib: NotNegative = 1.0
    recompute: bool = False
    optimiser: Optimiser = Optimiser()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        check_fields(self)


def validate(unlearning: Unlearning, topics: Sequence[Topic], decoder: Decoder) -> None:
    """Raise UsageError for the first thing that is impossible, before any expensive work."""
    _validate_layers(unlearning, decoder.num_layers)
    if unlearning.lora is not None:
        check_installed()
    check_trained(decoder, unlearning)
    remedy = "loses small gradients in training: use bfloat16 or float32"
    require(decoder.model.dtype != torch.float16, "dtype", "float16", remedy)
    require(bool(topics), "topics", list(topics), "must hold at least one topic")
    names = [topic.name for topic in topics]
    require(len(set(names)) == len(names), "topics", names, "must have different names")
    for topic in topics:
        _validate_topic(topic, unlearning)


def check_object(value: object, kinds: tuple[type, ...], field: str, example: str) -> None:
    """Raise UsageError for a class, a name and anything else that is none of `kinds`."""
    # A class has the attributes of its objects, which is all that a protocol checks.
    fits = isinstance(value, kinds) and not isinstance(value, type)
    require(fits, field, value, f"is no {field}; give an object such as {example}")


def check_strength(topic: Topic, method: object, where: str) -> None:
    """Raise UsageError for a strength that belongs to another method."""
    own = getattr(method, "strength_field", None)
    name = getattr(method, "name", type(method).__name__)
    for field in ("coefficient", "scale"):
        value = getattr(topic, field)
        if value is not None and field != own:
            remedy = f"which has {own!r} instead" if own else "which is not steered"
            raise UsageError(
                f"{where}.{field}: {value} does not belong to {name}, {remedy}; remove it"
            )


def _validate_topic(topic: Topic, unlearning: Unlearning) -> None:
    where = f"topics.{topic.name}"
    check_strength(topic, unlearning.method, where)
    require(bool(topic.forget), f"{where}.forget", [], "must hold at least one text")
    require(bool(topic.retain), f"{where}.retain", [], "must hold at least one text")
    pairs = any(isinstance(text, QuestionAnswer) for text in topic.forget)
    steered = isinstance(unlearning.method, RepresentationMethod)
    remedy = "would count questions like answers in question-answer pairs: leave it out"
    require(steered or not (pairs and topic.packed), f"{where}.packed", topic.packed, remedy)


def _validate_layers(unlearning: Unlearning, num_layers: int) -> None:
    layer, trained = unlearning.layer, unlearning.layers(num_layers)
    last = num_layers - 1
    require(0 <= layer <= last, "layer", layer, f"is not a block of this model: use 0 to {last}")
    require(bool(trained), "train.layers", list(trained), "must name at least one block")
    require(
        trained[0] >= 0 and trained[-1] <= last,
        "train.layers",
        list(trained),
        f"names a block that this model lacks: use 0 to {last}",
    )
    noised = unlearning.noised_layers
    top = layer if isinstance(unlearning.retain, HiddenMSE) else last
    remedy = f"has a block above {top}, where the retain loss ends: use 0 to {top}"
    require(max(noised, default=0) <= top, "noise.layers", list(noised), remedy)
    if unlearning.ends_at_layer:
        remedy = f"are above layer {layer}, where the objective ends: train blocks up to {layer}"
        require(trained[-1] <= layer, "train.layers", [i for i in trained if i > layer], remedy)
    hidden = isinstance(unlearning.method, RepresentationMethod)
    if hidden or isinstance(unlearning.retain, HiddenMSE):
        remedy = f"does not change the hidden states at layer {layer}: train a block up to it"
        require(trained[0] <= layer, "train.layers", list(trained), remedy)


def check_trained(decoder: Decoder, unlearning: Unlearning) -> None:
    """Raise UsageError for names to train that match nothing."""
    if unlearning.lora is None:
        trained_parameters(decoder, unlearning)
    else:
        modules_to_adapt(decoder, unlearning)


def modules_to_adapt(decoder: Decoder, unlearning: Unlearning) -> dict[str, nn.Module]:
    """The linear modules that get LoRA's factors, by the model's own names."""
    layers = unlearning.layers(decoder.num_layers)
    modules = adapted_modules(decoder, layers, unlearning.train_parameters)
    if unlearning.lora is not None:
        check_rank(modules, unlearning.lora.rank, "train.lora.rank")
    return modules


def trained_parameters(decoder: Decoder, unlearning: Unlearning) -> Mapping[str, nn.Parameter]:
    """The parameters to train, by the model's own names.

    A name matches a parameter or a module of every trained block, weights and biases alike. Raises
    UsageError for a name that matches nothing, and lists the block's parameters.
    """
    wanted = unlearning.train_parameters
    wanted = decoder.architecture.mlp_output if wanted is None else wanted
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    found: dict[str, nn.Parameter] = {}
    for layer in unlearning.layers(decoder.num_layers):
        block = dict(decoder.blocks[layer].named_parameters())
        for name in names:
            matches = [key for key in block if name == "all" or f"{key}.".startswith(f"{name}.")]
            if not matches:
                raise UsageError(
                    f"train.parameters: {name!r} matches nothing in block {layer}; "
                    f"it has {', '.join(block)}"
                )
            found |= {decoder.parameter_name(layer, key): block[key] for key in matches}
    return found
