"""Set-difference pruning: does the knowledge come back without what matters for it alone?

Wei et al. 2402.05162, section 3: within each matrix, the units of highest score on forget texts
less those of highest score on retain texts are set to 0. An unlearned model that hides what it
knows may do so by few units that retain texts do not need (Łucki et al. 2409.18025). Scores:
`defuse.attacks.prune.sensitivity`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.beside import once_beside
from defuse.attacks.material import FORGET, RETAIN, Material, ask_all
from defuse.attacks.notes import Notes
from defuse.attacks.passages import passages
from defuse.attacks.prune.sensitivity import Scores, neuron_scores, weight_scores
from defuse.attacks.results import Condition, Example, Result, condition, examples
from defuse.batches import TextBatch
from defuse.borrowed import sharing_copy
from defuse.decoder import Decoder
from defuse.errors import check_choices, require
from defuse.schedule import generator

KIND = "prune"
Noted = dict[str, list[float]]


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
        for name in ("texts", "batch_size"):
            require(
                getattr(self, name) > 0, f"prune.{name}", getattr(self, name), "must be above 0"
            )
        require(self.length > 1, "prune.length", self.length, "must be at least 2")


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
    batches = {name: _passages(model, tokenizer, material, name, config) for name in material.sets}
    conditions: list[Condition] = []
    turned: list[Example] = []
    with notes.watching(model):
        before = ask_all(model, tokenizer, material, notes, "before")
        scores = {
            name: _noted_scores(model, name, some, config, notes) for name, some in batches.items()
        }
        for name, chosen in _choices(scores[FORGET], scores[RETAIN], config):
            after = ask_all(pruned(model, chosen), tokenizer, material, notes, name)
            numbers = {
                "pruned": float(sum(mask.sum() for mask in chosen.values())),
                "of": float(sum(mask.numel() for mask in chosen.values())),
            }
            conditions.append(condition(name, before, after, config.seed, numbers))
            turned.extend(examples(name, before, after, material.settings.score))
    return Result(KIND, asdict(config), conditions, notes.cost, turned)


def _passages(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    name: str,
    config: Pruning,
) -> list[TextBatch]:
    return passages(
        Decoder(model),
        tokenizer,
        material,
        name,
        count=config.texts,
        length=config.length,
        batch_size=config.batch_size if config.unit == "neuron" else 1,
        seed=config.seed,
    )


def _noted_scores(
    model: PreTrainedModel, name: str, batches: list[TextBatch], config: Pruning, notes: Notes
) -> Scores:
    """Scores of neurons are noted; of weights there are too many, so a resumption finds anew."""
    find: Callable[..., Scores] = neuron_scores if config.unit == "neuron" else weight_scores
    signed = config.score == "signed" and name == FORGET

    def found() -> tuple[Noted, Scores]:
        scores = find(model, batches, signed=signed)
        few = scores if config.unit == "neuron" else {}
        return {key: values.tolist() for key, values in few.items()}, scores

    noted, kept = once_beside(notes, f"scores/{name}", found)
    return {key: torch.tensor(values) for key, values in noted.items()} or kept()


def _choices(
    forget: Scores, retain: Scores, config: Pruning
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Each condition's name and the units to prune, and as many random ones that may go."""
    for share in config.shares:
        chosen = {
            name: set_difference(values, retain[name], share, config.keep)
            for name, values in forget.items()
        }
        called = f"{100 * share:g}%"
        yield called, chosen
        draws = generator(config.seed, "random units", str(share))
        yield (
            f"{called}, random",
            {
                name: drawn(~top(retain[name], config.keep), int(mask.sum()), draws)
                for name, mask in chosen.items()
            },
        )


def set_difference(forget: Tensor, retain: Tensor, share: float, keep: float) -> Tensor:
    """The top `share` of one matrix's units by `forget` less the top `keep` by `retain`: a mask."""
    return top(forget, share) & ~top(retain, keep)


def top(scores: Tensor, share: float) -> Tensor:
    """A mask of the round(share · n) highest scores, but of none that is 0 or below."""
    flat = scores.flatten()
    highest = flat.topk(round(share * len(flat))).indices
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[highest] = flat[highest] > 0
    return mask.view(scores.shape)


def drawn(allowed: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """A mask of `count` random units among those `allowed` (at most all of them)."""
    places = allowed.flatten().nonzero()[:, 0]
    picked = places[torch.randperm(len(places), generator=draws)[:count]]
    mask = torch.zeros(allowed.numel(), dtype=torch.bool)
    mask[picked] = True
    return mask.view(allowed.shape)


@torch.no_grad()
def pruned(model: PreTrainedModel, chosen: Mapping[str, Tensor]) -> PreTrainedModel:
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
