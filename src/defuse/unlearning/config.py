"""What to unlearn and how, as plain data; `validate` refuses what does not go together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from defuse.data.text import QuestionAnswer, Text
from defuse.methods import HiddenMSE, Method, RepresentationMethod, Retain
from defuse.models.decoder import Decoder
from defuse.models.lora import LoRA, adapted_modules, check_installed
from defuse.unlearning.noise import GaussianNoise
from defuse.utils.errors import UsageError, check_choices, require
from defuse.utils.scales import multiple, plain_number

DEFAULT_MIX = 0.5


@dataclass(frozen=True)
class Unlearning:
    """A method, the retain loss that defends the rest, and the noise that hardens it.

    `layer` (l, 0-based): the block whose output is steered (representation methods), matched
    (HiddenMSE) and noised (RNA). `train_layers`: blocks to train; None = l-2, l-1 and l.
    `train_parameters`: their names within a block, such as "mlp.down_proj"; None = the MLP's
    output matrix, "all" = every one. `lora` trains factors beside the linear modules of these names
    instead, None then being all of them. `loss_scale="hidden_variance"` divides hidden-state losses
    by the retain texts' hidden variance per unit. `mask_padding=False`, `skip_first_token=False`
    and `master_weights=False` reproduce the paper's code (docs/methods.md).
    """

    method: Method
    retain: Retain = HiddenMSE()  # noqa: RUF009 (frozen)
    noise: GaussianNoise | None = None
    layer: int = 7
    train_layers: Sequence[int] | Literal["all"] | None = None
    train_parameters: str | Sequence[str] | None = None
    lora: LoRA | None = None
    loss_scale: Literal["none", "hidden_variance"] = "none"
    mask_padding: bool = True
    skip_first_token: bool = True
    master_weights: bool = True

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def ends_at_layer(self) -> bool:
        """Whether nothing above `layer` is ever needed."""
        hidden_only = isinstance(self.retain, HiddenMSE)
        return hidden_only and isinstance(self.method, RepresentationMethod)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The blocks to train, in order."""
        if self.train_layers is None:
            return tuple(range(max(0, self.layer - 2), self.layer + 1))
        if self.train_layers == "all":
            return tuple(range(num_layers))
        return tuple(sorted(set(self.train_layers)))


@dataclass(frozen=True)
class Topic:
    """One body of knowledge to forget, and the texts whose understanding must not suffer.

    `coefficient` (c; RMU, RSV) and `scale` (β; Adaptive RMU) are the strength of steering; "4x" is
    four times the forget texts' mean hidden norm. `weight` (α) multiplies the retain loss. None
    takes the table's value for the method and retain loss (`defuse.unlearning.defaults`). Texts
    are cut after `forget_length` and `retain_length` tokens; `packed` joins short texts and cuts
    the whole into rows of just that length. `mix`: the share of retain texts behind a sentence with
    one of `triggers` (`data.trigger_mixing`); None is half of them if there are triggers,
    else none.
    Where there are none to mix, the words most typical of the forget texts are taken.
    """

    name: str
    forget: Sequence[Text]
    retain: Sequence[Text]
    forget_length: int = 512
    retain_length: int = 512
    coefficient: float | str | None = None
    scale: float | str | None = None
    weight: float | None = None
    packed: bool = False
    triggers: Sequence[str] = ()
    mix: float | None = None

    @property
    def mixed_share(self) -> float:
        """`mix` as a number."""
        return (DEFAULT_MIX if self.triggers else 0.0) if self.mix is None else self.mix


@dataclass(frozen=True)
class Training:
    """The loop: `steps` of AdamW without weight decay, topics in turn, `batch_size` texts each.

    Texts come in file order and start again when they run out; `shuffle` draws a new order for
    every round. `keep_gib`: how much memory may hold the frozen part's hidden states of texts that
    will come again. `recompute`: between forward and backward pass keep only what enters each
    block, and run the block again: less memory, more time, the same numbers.
    """

    steps: int = 500
    batch_size: int = 4
    learning_rate: float = 5e-5
    seed: int = 42
    shuffle: bool = False
    keep_gib: float = 1.0
    recompute: bool = False


def validate(
    unlearning: Unlearning, topics: Sequence[Topic], training: Training, decoder: Decoder
) -> None:
    """Raise UsageError for the first thing that cannot be, before anything expensive."""
    _validate_layers(unlearning, decoder.num_layers)
    if unlearning.lora is not None:
        check_installed()
    check_trained(decoder, unlearning)
    remedy = "lets small gradients vanish in training: use bfloat16 or float32"
    require(decoder.model.dtype != torch.float16, "dtype", "float16", remedy)
    require(bool(topics), "topics", list(topics), "must hold at least one topic")
    names = [topic.name for topic in topics]
    require(len(set(names)) == len(names), "topics", names, "must have different names")
    for topic in topics:
        _validate_topic(topic, unlearning)
    require(training.steps > 0, "steps", training.steps, "must be at least 1")
    require(training.batch_size > 0, "batch_size", training.batch_size, "must be at least 1")
    rate = training.learning_rate
    require(0 < rate < math.inf, "learning_rate", rate, "must be a finite number above 0")
    require(training.keep_gib >= 0, "keep_gib", training.keep_gib, "must not be negative")


def _validate_topic(topic: Topic, unlearning: Unlearning) -> None:
    where = f"topics.{topic.name}"
    own = getattr(unlearning.method, "strength_field", None)
    for field in {"coefficient", "scale"} - {own}:
        remedy = f"does not belong to {type(unlearning.method).__name__}; remove it"
        require(getattr(topic, field) is None, f"{where}.{field}", getattr(topic, field), remedy)
    require(bool(topic.forget), f"{where}.forget", [], "must hold at least one text")
    require(bool(topic.retain), f"{where}.retain", [], "must hold at least one text")
    for field in ("coefficient", "scale"):
        if (value := getattr(topic, field)) is not None:
            multiple(value, f"{where}.{field}")
    plain_number(topic.weight, f"{where}.weight")
    pairs = any(isinstance(text, QuestionAnswer) for text in topic.forget)
    steered = isinstance(unlearning.method, RepresentationMethod)
    remedy = "would count questions like answers in question-answer pairs: leave it out"
    require(steered or not (pairs and topic.packed), f"{where}.packed", topic.packed, remedy)
    share = topic.mixed_share
    require(0 <= share <= 1, f"{where}.mix", share, "is no share of the texts: use 0 to 1")
    for field in ("forget_length", "retain_length"):
        require(getattr(topic, field) > 1, f"{where}.{field}", getattr(topic, field), "is below 2")


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
    if unlearning.ends_at_layer:
        remedy = f"lie above layer {layer}, where the objective ends: train blocks up to {layer}"
        require(trained[-1] <= layer, "train.layers", [i for i in trained if i > layer], remedy)
    hidden = isinstance(unlearning.method, RepresentationMethod)
    if hidden or isinstance(unlearning.retain, HiddenMSE):
        remedy = f"leaves the hidden states at layer {layer} as they are: train a block up to it"
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
    return adapted_modules(decoder, layers, unlearning.train_parameters)


def trained_parameters(decoder: Decoder, unlearning: Unlearning) -> Mapping[str, nn.Parameter]:
    """The parameters to train by the model's own names.

    A name matches a parameter or a module of every trained block, tensors and biases alike. Raises
    UsageError for a name that matches nothing, listing what there is.
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
