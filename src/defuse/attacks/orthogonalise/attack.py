"""Orthogonalisation: does the knowledge come back without the direction that unlearning added?

Łucki et al. 2409.18025 take, at each layer, the unlearned model's mean hidden state on forget
texts minus the reference's, and remove that direction r (‖r‖ = 1) as Arditi et al. 2406.11717 do:
h − r rᵀh at every token, or W − r rᵀW for every matrix that writes into the residual stream.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import FORGET, RETAIN, Answers, Material, ask_all, ask_made
from defuse.attacks.notes import Notes
from defuse.attacks.orthogonalise.ablation import Removal, means, with_weights, without
from defuse.attacks.passages import check_drawing, passages
from defuse.attacks.results import (
    Condition,
    Curves,
    Example,
    Line,
    Result,
    condition,
    examples,
    figures,
)
from defuse.attacks.split_half import crosswise
from defuse.data.collate import TextBatch
from defuse.evaluate import Interval
from defuse.models.load import require_plain_weights
from defuse.utils.errors import UsageError, check_choices, require
from defuse.utils.random import generator

KIND = "orthogonalise"
Way = Literal["all", "each", "strongest", "weights"]


@dataclass(frozen=True)
class Orthogonalisation:
    """How directions are found and removed.

    `ways`: "all" = from each block's output its own layer's direction, in all blocks at once;
    "each" = in one block after the other; "strongest" = the direction of the layer that differs
    most, from every block's output; "weights" = the same direction out of the weights. `source`:
    the mean difference on forget texts, or less that on retain texts. `to`: what is left of the
    removed component: nothing, or the reference's mean on forget texts. `texts`: drawn from each
    set, each of at most `length` tokens, `batch_size` at a time. `seed` draws texts, random
    directions, halves and bootstraps.
    """

    ways: tuple[Way, ...] = ("all", "each", "strongest", "weights")
    source: Literal["forget", "forget - retain"] = "forget"
    to: Literal["zero", "reference mean"] = "zero"
    texts: int = 128
    length: int = 256
    batch_size: int = 8
    seed: int = 42

    def __post_init__(self) -> None:
        check_choices(self, "orthogonalise.")
        known = get_args(Way)
        remedy = f"must name one or more of {', '.join(known)}"
        good = bool(self.ways) and set(self.ways) <= set(known)
        require(good, "orthogonalise.ways", self.ways, remedy)
        fits = self.to == "zero" or "weights" not in self.ways
        remedy = "is more than weights can hold; take 'weights' out of orthogonalise.ways"
        require(fits, "orthogonalise.to", self.to, remedy)
        check_drawing(self, "orthogonalise.")


@dataclass(frozen=True)
class Directions:
    """By layer: `unit` (L, d) of length 1, or 0 where nothing differs; `strength` (L,), the
    difference's length over the reference's mean hidden state's; `mean` (L, d), the reference's."""

    unit: Tensor
    strength: Tensor
    mean: Tensor

    @property
    def strongest(self) -> int:
        return int(self.strength.argmax())

    def removal(self, layer: int, config: Orthogonalisation) -> Removal:
        """What takes this layer's direction away."""
        unit, mean = self.unit[layer], self.mean[layer]
        return Removal(unit, float(unit @ mean) if config.to == "reference mean" else 0.0)

    def random(self, seed: int) -> "Directions":
        """Drawn directions in their place, of no layer where nothing differs."""
        draws = generator(seed, "random directions", *self.unit.shape)
        drawn = torch.randn(self.unit.shape, generator=draws, dtype=torch.float64)
        unit = drawn / drawn.norm(dim=1, keepdim=True)
        return Directions(unit * (self.strength > 0)[:, None], self.strength, self.mean)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: Orthogonalisation | None = None,
    *,
    reference: PreTrainedModel | None = None,
    notes: Notes | None = None,
) -> Result:
    """Ask `model` without the directions that set it apart from `reference`.

    Raises UsageError without a reference, and for one of other shapes.
    """
    config, notes = config or Orthogonalisation(), notes or Notes()
    reference = _check_reference(model, reference)
    if "weights" in config.ways:
        require_plain_weights(model, "model", "take 'weights' out of orthogonalise.ways")
    wanted = (FORGET,) if config.source == FORGET else (FORGET, RETAIN)
    batches = {name: passages(model, tokenizer, material, name, config) for name in wanted}
    with notes.watching(model, reference):
        before = ask_all(model, tokenizer, material, notes, "before")
        found = notes.once("means", lambda: _means(model, reference, batches))
        directions = find_directions(found)
        variants = list(_variants(model, directions, config))
        after = {
            each.name: ask_made(each.make, tokenizer, material, notes, each.name)
            for each in variants
        }
    conditions, turned = _conditions(before, variants, after, material, config)
    curves = _curves(before, after, directions, config)
    return Result(KIND, asdict(config), conditions, notes.cost, turned, curves)


def _check_reference(model: PreTrainedModel, reference: PreTrainedModel | None) -> PreTrainedModel:
    if reference is None:
        raise UsageError(
            "reference: there is none, and the direction is the difference from it; give the model "
            "as it was before unlearning"
        )
    own, other = (
        (each.config.model_type, each.config.num_hidden_layers, each.config.hidden_size)
        for each in (model, reference)
    )
    if own != other:
        raise UsageError(
            f"reference: is {other[0]} with {other[1]} layers of {other[2]} units, the model "
            f"{own[0]} with {own[1]} of {own[2]}; give the model as it was before unlearning"
        )
    return reference


def _means(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batches: Mapping[str, Sequence[TextBatch]],
) -> dict[str, dict[str, list[list[float]]]]:
    """By set and model: mean hidden states (L, d)."""
    return {
        name: {
            who: means(each, some).tolist()
            for who, each in (("model", model), ("reference", reference))
        }
        for name, some in batches.items()
    }


def find_directions(found: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Directions:
    """From mean hidden states (L, d) by set and model; retain texts' difference is taken off."""
    tensors = {
        name: {who: torch.tensor(rows, dtype=torch.float64) for who, rows in both.items()}
        for name, both in found.items()
    }
    difference = tensors[FORGET]["model"] - tensors[FORGET]["reference"]
    if RETAIN in tensors:
        difference = difference - (tensors[RETAIN]["model"] - tensors[RETAIN]["reference"])
    mean, size = tensors[FORGET]["reference"], difference.norm(dim=1)
    unit = difference / size.where(size > 0, 1.0)[:, None]
    return Directions(unit, size / mean.norm(dim=1), mean)


@dataclass(frozen=True)
class Variant:
    """A condition: what makes its model, and the one layer that is changed where it is one."""

    name: str
    make: Callable[[], PreTrainedModel]
    numbers: Mapping[str, float] = field(default_factory=dict)
    layer: int | None = None


def _variants(
    model: PreTrainedModel, directions: Directions, config: Orthogonalisation
) -> Iterator[Variant]:
    layers = range(len(directions.unit))
    if "each" in config.ways:
        for layer in layers:
            make = partial(without, model, {layer: directions.removal(layer, config)})
            numbers = {"strength": float(directions.strength[layer])}
            yield Variant(_each(layer), make, numbers, layer)
    drawn, chosen = directions.random(config.seed), {"layer": float(directions.strongest)}
    for control, some in (("", directions), (", random direction", drawn)):
        strongest = some.removal(some.strongest, config)
        if "all" in config.ways:
            own = {layer: some.removal(layer, config) for layer in layers}
            yield Variant(f"all{control}", partial(without, model, own))
        if "strongest" in config.ways:
            everywhere = dict.fromkeys(layers, strongest)
            yield Variant(f"strongest{control}", partial(without, model, everywhere), chosen)
        if "weights" in config.ways:
            make = partial(with_weights, model, strongest.unit)
            yield Variant(f"weights{control}", make, chosen)


def _each(layer: int) -> str:
    return f"each, layer {layer}"


def _conditions(
    before: Answers,
    variants: Sequence[Variant],
    after: Mapping[str, Answers],
    material: Material,
    config: Orthogonalisation,
) -> tuple[list[Condition], list[Example]]:
    conditions, turned = [], []
    for each in variants:
        answers = after[each.name]
        conditions.append(condition(each.name, before, answers, config.seed, each.numbers))
        if each.layer is None:
            turned.extend(examples(each.name, before, answers, material.settings.score))
    if "each" in config.ways:
        forget = [after[each.name][FORGET] for each in variants if each.layer is not None]
        outcomes, places = crosswise(forget, config.seed, FORGET)
        numbers = {f"layer for half {half}": float(at) for half, at in enumerate(places, start=1)}
        chosen = condition("each, chosen layer", before, {FORGET: outcomes}, config.seed, numbers)
        conditions.append(chosen)
    return conditions, turned


def _curves(
    before: Answers,
    after: Mapping[str, Answers],
    directions: Directions,
    config: Orthogonalisation,
) -> list[Curves]:
    layers = [float(layer) for layer in range(len(directions.strength))]
    strength = [Interval(value, value, value) for value in directions.strength.tolist()]
    curves = [
        Curves(
            "Mean difference from the reference on forget texts",
            "layer",
            "length, in the reference's mean hidden state's",
            [Line("difference", layers, strength)],
        )
    ]
    if "each" in config.ways:
        lines = [
            Line(
                name,
                layers,
                [
                    figures(after[_each(at)][name], config.seed).accuracy
                    for at in range(len(layers))
                ],
            )
            for name in before
        ]
        title = "Answers without the direction of one layer"
        curves.append(Curves(title, "layer", "accuracy", lines))
    return curves
