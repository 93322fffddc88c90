"""Orthogonalisation: does the knowledge come back without the direction that unlearning added?

Łucki et al. 2409.18025 take, at each layer, the mean hidden state of the unlearned model on forget
texts minus the reference's, and remove that direction r (‖r‖ = 1) as Arditi et al. 2406.11717 do:
h − r rᵀh at every token, or W − r rᵀW for every matrix that writes into the residual stream.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import FORGET, RETAIN, Answers, AttackData, ask_all, ask_made
from defuse.attacks.findings import Findings
from defuse.attacks.orthogonalise.ablation import Removal, means, with_weights, without
from defuse.attacks.orthogonalise.config import Orthogonalisation
from defuse.attacks.passages import passages
from defuse.attacks.results import (
    Condition,
    Curves,
    Example,
    Line,
    Result,
    accuracy,
    condition,
    examples,
)
from defuse.attacks.split_half import cross_fit
from defuse.data.collate import TextBatch
from defuse.evaluate import Interval
from defuse.models.load import require_plain_weights
from defuse.utils.errors import UsageError
from defuse.utils.progress import SILENT, Progress
from defuse.utils.random import generator

NAME = "orthogonalise"


@dataclass(frozen=True)
class Directions:
    """By layer: `unit` (L, d) of length 1, or 0 if nothing differs; `strength` (L,), the length of
    the difference over that of the reference's mean hidden state; `mean` (L, d), that mean."""

    unit: Tensor
    strength: Tensor
    mean: Tensor

    @property
    def strongest(self) -> int:
        """The layer that differs most."""
        return int(self.strength.argmax())

    def removal(self, layer: int, config: Orthogonalisation) -> Removal:
        """The removal of this layer's direction."""
        unit, mean = self.unit[layer], self.mean[layer]
        return Removal(unit, float(unit @ mean) if config.to == "reference mean" else 0.0)

    def random(self, seed: int) -> "Directions":
        """Random directions in their place, and none in a layer where nothing differs."""
        draws = generator(seed, "random directions", *self.unit.shape)
        drawn = torch.randn(self.unit.shape, generator=draws, dtype=torch.float64)
        unit = drawn / drawn.norm(dim=1, keepdim=True)
        return Directions(unit * (self.strength > 0)[:, None], self.strength, self.mean)


def check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Orthogonalisation,
    *,
    reference: PreTrainedModel | None = None,
) -> None:
    """Raise UsageError for what the attack refuses, without reading weights.

    That is a missing reference, one of other shapes, quantised weights that a direction is to be
    removed from, and texts that cannot be used.
    """
    prepare(model, tokenizer, data, config, reference)


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Orthogonalisation,
    reference: PreTrainedModel | None,
) -> tuple[PreTrainedModel, dict[str, list[TextBatch]]]:
    """Return the reference, and the texts by set. Raises UsageError as `check` does."""
    reference = _check_reference(model, reference)
    if "weights" in config.ways:
        require_plain_weights(model, "model", "take 'weights' out of orthogonalise.ways")
    wanted = (FORGET,) if config.source == FORGET else (FORGET, RETAIN)
    return reference, {name: passages(model, tokenizer, data, name, config) for name in wanted}


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Orthogonalisation | None = None,
    *,
    reference: PreTrainedModel | None = None,
    findings: Findings | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Ask `model` without the directions in which it differs from `reference`.

    Raises UsageError as `check` does.
    """
    config, findings = config or Orthogonalisation(), findings or Findings()
    reference, batches = prepare(model, tokenizer, data, config, reference)
    findings.report_to(progress, NAME, _pieces(model, data, config))
    with findings.counting(model, reference):
        before = ask_all(model, tokenizer, data, findings, "before")
        found = findings.get_or_compute("means", lambda: _means(model, reference, batches))
        directions = find_directions(found)
        ablations = list(_ablations(model, directions, config))
        after = {
            each.name: ask_made(each.make, tokenizer, data, findings, each.name)
            for each in ablations
        }
    conditions, changed = _conditions(before, ablations, after, data, config)
    curves = _curves(before, after, directions, config)
    return Result(NAME, asdict(config), conditions, findings.cost, changed, curves)


def _pieces(model: PreTrainedModel, data: AttackData, config: Orthogonalisation) -> int:
    """The number of findings: the means, and answers to each set before and in each ablation."""
    each = model.config.num_hidden_layers if "each" in config.ways else 0
    ablations = each + 2 * len(set(config.ways) - {"each"})
    return 1 + len(data.sets) * (1 + ablations)


def _check_reference(model: PreTrainedModel, reference: PreTrainedModel | None) -> PreTrainedModel:
    if reference is None:
        raise UsageError(
            "reference: missing, and the direction is the difference from it; give the model as it "
            "was before unlearning"
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
    """Mean hidden states (L, d) by set and model."""
    return {
        name: {
            who: means(each, some).tolist()
            for who, each in (("model", model), ("reference", reference))
        }
        for name, some in batches.items()
    }


def find_directions(found: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Directions:
    """Compute directions from mean hidden states (L, d) by set and model.

    If there are retain texts, their difference is subtracted.
    """
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
class Ablation:
    """A condition: how its model is made, and the layer if only one is changed."""

    name: str
    make: Callable[[], PreTrainedModel]
    numbers: Mapping[str, float] = field(default_factory=dict)
    layer: int | None = None
    is_control: bool = False


def _ablations(
    model: PreTrainedModel, directions: Directions, config: Orthogonalisation
) -> Iterator[Ablation]:
    if "each" in config.ways:
        for layer in range(len(directions.unit)):
            make = partial(without, model, {layer: directions.removal(layer, config)})
            numbers = {"strength": float(directions.strength[layer])}
            yield Ablation(_each(layer), make, numbers, layer)
    yield from _whole(model, directions, config, "", is_control=False)
    drawn = directions.random(config.seed)
    yield from _whole(model, drawn, config, ", random direction", is_control=True)


def _whole(
    model: PreTrainedModel,
    directions: Directions,
    config: Orthogonalisation,
    suffix: str,
    *,
    is_control: bool,
) -> Iterator[Ablation]:
    """The ablations that change all layers at once."""
    layers, chosen = range(len(directions.unit)), {"layer": float(directions.strongest)}
    strongest = directions.removal(directions.strongest, config)
    if "all" in config.ways:
        own = {layer: directions.removal(layer, config) for layer in layers}
        yield Ablation(f"all{suffix}", partial(without, model, own), is_control=is_control)
    if "strongest" in config.ways:
        make = partial(without, model, dict.fromkeys(layers, strongest))
        yield Ablation(f"strongest{suffix}", make, chosen, is_control=is_control)
    if "weights" in config.ways:
        make = partial(with_weights, model, strongest.unit)
        yield Ablation(f"weights{suffix}", make, chosen, is_control=is_control)


def _each(layer: int) -> str:
    return f"each, layer {layer}"


def _conditions(
    before: Answers,
    ablations: Sequence[Ablation],
    after: Mapping[str, Answers],
    data: AttackData,
    config: Orthogonalisation,
) -> tuple[list[Condition], list[Example]]:
    conditions, changed = [], []
    for each in ablations:
        answers, whole = after[each.name], each.layer is None
        conditions.append(
            condition(
                each.name,
                before,
                answers,
                config.seed,
                each.numbers,
                headline=whole,
                is_control=each.is_control,
            )
        )
        if whole:
            changed.extend(examples(each.name, before, answers, data.settings.score))
    if "each" in config.ways:
        forget = [after[each.name][FORGET] for each in ablations if each.layer is not None]
        outcomes, places = cross_fit(forget, config.seed, FORGET)
        numbers = {f"layer for half {half}": float(at) for half, at in enumerate(places, start=1)}
        chosen = condition("each, chosen layer", before, {FORGET: outcomes}, config.seed, numbers)
        conditions.append(chosen)
    return conditions, changed


def _curves(
    before: Answers,
    after: Mapping[str, Answers],
    directions: Directions,
    config: Orthogonalisation,
) -> list[Curves]:
    layers = [float(layer) for layer in range(len(directions.strength))]
    strength = [Interval(value, value, value) for value in directions.strength.tolist()]
    title, unit = "Mean difference from the reference on forget texts", "reference's mean state = 1"
    curves = [Curves(title, "layer", unit, [Line("difference", layers, strength)])]
    if "each" in config.ways:
        by_layer = [after[_each(int(layer))] for layer in layers]
        lines = [
            Line(name, layers, [accuracy(answers[name]) for answers in by_layer]) for name in before
        ]
        title = "Answers without the direction of one layer"
        curves.append(Curves(title, "layer", "accuracy", lines))
    return curves
