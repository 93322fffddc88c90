"""Which units are pruned: those of highest score, as places in their matrix."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.attacks.prune.sensitivity import Scores
from defuse.utils.random import generator


@dataclass(frozen=True)
class Tops:
    """Where a matrix's highest scores stand: all that choosing needs of scores that fill memory.

    `shape`: the matrix's. `places`: by share, those of the flattened matrix (k,), in int32, which
    no matrix of a block outgrows.
    """

    shape: torch.Size
    places: Mapping[float, Tensor]

    def mask(self, share: float) -> Tensor:
        """The top `share`, in the matrix's shape."""
        mask = torch.zeros(self.shape.numel(), dtype=torch.bool)
        mask[self.places[share].long()] = True
        return mask.view(self.shape)


ByMatrix = Mapping[str, Tops]  # by the parameter's full name
Chosen = Mapping[str, Tensor]  # the same: masks


def tops(scores: Tensor, shares: Iterable[float]) -> Tops:
    """Of each share, the round(share · n) highest scores, but none that is 0 or below."""
    flat = scores.flatten()
    return Tops(scores.shape, {share: _highest(flat, round(share * len(flat))) for share in shares})


def _highest(flat: Tensor, count: int) -> Tensor:
    values, places = flat.topk(count)
    return places[values > 0].to(torch.int32)


def reduced(scores: Scores, shares: Sequence[float]) -> ByMatrix:
    """`tops` of every matrix; each matrix's scores are dropped from `scores` as it is done."""
    return {name: tops(scores.pop(name), shares) for name in list(scores)}


def set_difference(forget: Tops, retain: Tops, share: float, keep: float) -> Tensor:
    """The top `share` of one matrix's units by `forget` less the top `keep` by `retain`: a mask."""
    return forget.mask(share) & ~retain.mask(keep)


def drawn(allowed: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """A mask of `count` random units among those `allowed` (at most all of them)."""
    places = allowed.flatten().nonzero()[:, 0]
    picked = places[torch.randperm(len(places), generator=draws)[:count]]
    mask = torch.zeros(allowed.numel(), dtype=torch.bool)
    mask[picked] = True
    return mask.view(allowed.shape)


@dataclass(frozen=True)
class Choices:
    """Masks by matrix; what they are made from is found when the first of them is asked for.

    `keep`: the share that is highest on retain texts and stays. `seed` draws random units.
    """

    forget: Callable[[], ByMatrix]
    retain: Callable[[], ByMatrix]
    keep: float
    seed: int

    def of_forget(self, share: float) -> Chosen:
        """Units that matter for forget texts, and not for retain texts."""
        forget, retain = self.forget(), self.retain()
        return {
            name: set_difference(forget[name], retain[name], share, self.keep) for name in forget
        }

    def random(self, share: float) -> Chosen:
        """As many random ones of each matrix that may go."""
        retain, draws = self.retain(), generator(self.seed, "random units", str(share))
        return {
            name: drawn(~retain[name].mask(self.keep), int(mask.sum()), draws)
            for name, mask in self.of_forget(share).items()
        }
