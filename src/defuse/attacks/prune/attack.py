"""Set-difference pruning: does the knowledge come back without what matters for it alone?

Wei et al. 2402.05162, section 3: within each matrix, the units of highest score on forget texts
less those of highest score on retain texts are set to 0. An unlearned model that hides what it
knows may do so by few units that retain texts do not need (Łucki et al. 2409.18025). Scores:
`defuse.attacks.prune.sensitivity`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.beside import once_beside
from defuse.attacks.data import FORGET, RETAIN, Material, ask_all
from defuse.attacks.notes import Notes
from defuse.attacks.passages import check_drawing, passages
from defuse.attacks.prune.sensitivity import neuron_scores, weight_scores
from defuse.attacks.prune.units import ByMatrix, Choices, Chosen, reduced
from defuse.attacks.results import Result
from defuse.attacks.variants import Change, Made, ask_changed
from defuse.data.collate import TextBatch
from defuse.models.freeze import sharing_copy
from defuse.models.load import require_plain_weights
from defuse.utils.errors import check_choices, require

KIND = "prune"


@dataclass(frozen=True)
class Pruning:
    """`shares`: of each matrix's units, the highest on forget texts, tried in turn. `keep`: the
    share that is highest on retain texts and stays. `unit`: "neuron" = of an MLP, "weight" = of
    any linear module in the blocks, as in the paper. `score`: "snip" = mean |∂L/∂c|, "signed" =
    on forget texts mean ∂L/∂c, so that only what raises their loss goes. `texts`: drawn from each
    set, each of at most `length` tokens, `batch_size` at a time (weights: one). `seed` draws
    texts, random units and bootstraps."""

    shares: tuple[float, ...] = (0.005, 0.01, 0.025, 0.05)
    keep: float = 0.05
    unit: Literal["neuron", "weight"] = "neuron"
    score: Literal["snip", "signed"] = "snip"
    texts: int = 128
    length: int = 256
    batch_size: int = 4
    seed: int = 42

    def __post_init__(self) -> None:
        check_choices(self, "prune.")
        require(bool(self.shares), "prune.shares", self.shares, "must name at least one share")
        for share in self.shares:
            require(0 < share <= 1, "prune.shares", share, "must be above 0 and at most 1")
        require(0 <= self.keep < 1, "prune.keep", self.keep, "must be from 0 to below 1")
        check_drawing(self, "prune.")


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: Pruning | None = None,
    *,
    notes: Notes | None = None,
) -> Result:
    """Ask `model` without the units that matter for forget texts alone, and without random ones."""
    config, notes = config or Pruning(), notes or Notes()
    require_plain_weights(model, "model", "give it as it was before")
    drawing = config if config.unit == "neuron" else replace(config, batch_size=1)
    batches = {name: passages(model, tokenizer, material, name, drawing) for name in material.sets}
    with notes.watching(model):
        before = ask_all(model, tokenizer, material, notes, "before")
        forget, retain = (
            _tops(model, name, batches[name], config, notes) for name in (FORGET, RETAIN)
        )
        choices = Choices(forget, retain, config.keep, config.seed)
        changes = _changes(model, choices, config.shares)
        conditions, turned = ask_changed(changes, tokenizer, material, before, notes, config.seed)
    return Result(KIND, asdict(config), conditions, notes.cost, turned)


def _tops(
    model: PreTrainedModel, name: str, batches: list[TextBatch], config: Pruning, notes: Notes
) -> Callable[[], ByMatrix]:
    """Scores of neurons are noted; of weights there are too many, so a resumption finds anew."""
    signed = config.score == "signed" and name == FORGET
    shares = config.shares if name == FORGET else [config.keep]
    if config.unit == "weight":

        def find() -> tuple[None, ByMatrix]:
            return None, reduced(weight_scores(model, batches, signed=signed), shares)

        return once_beside(notes, f"scores/{name}", find)[1]

    def noted() -> dict[str, list[float]]:
        scores = neuron_scores(model, batches, signed=signed)
        return {matrix: values.tolist() for matrix, values in scores.items()}

    known = notes.once(f"scores/{name}", noted)
    found = reduced({matrix: torch.tensor(values) for matrix, values in known.items()}, shares)
    return lambda: found


def _changes(model: PreTrainedModel, choices: Choices, shares: Sequence[float]) -> Iterator[Change]:
    for share in shares:
        name = f"{100 * share:g}%"
        yield Change(name, partial(_without, model, choices.of_forget, share))
        yield Change(f"{name}, random", partial(_without, model, choices.random, share))


def _without(model: PreTrainedModel, choose: Callable[[float], Chosen], share: float) -> Made:
    chosen = choose(share)
    numbers = {
        "pruned": float(sum(mask.sum() for mask in chosen.values())),
        "of": float(sum(mask.numel() for mask in chosen.values())),
    }
    return pruned(model, chosen), numbers


@torch.no_grad()
def pruned(model: PreTrainedModel, chosen: Chosen) -> PreTrainedModel:
    """A copy with units set to 0; all tensors but those named in `chosen` are shared.

    A mask has its parameter's shape, or is one of its inputs' (inputs,): the neurons before it.
    """
    copy = sharing_copy(model, [model.get_parameter(name) for name in chosen])
    for name, mask in chosen.items():
        module, weight = copy.get_submodule(name.removesuffix(".weight")), copy.get_parameter(name)
        if mask.ndim == 1 and not isinstance(module, nn.Linear):
            mask = mask[:, None]
        weight.masked_fill_(mask.to(weight.device), 0)
    return copy
