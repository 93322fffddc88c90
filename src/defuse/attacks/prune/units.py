"""Choice of the units to prune: those of highest score, as places in their matrix."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.attacks.prune.sensitivity import Scores
from defuse.utils.random import generator


@dataclass(frozen=True)
class Tops:
    """The places of a matrix's highest scores; all scores of a model would fill the memory.

    `shape`: the matrix's. `places`: for each share, places in the flattened matrix (k,), in int32,
    which is enough for any matrix of a block.
    """

    shape: torch.Size
    places: Mapping[float, Tensor]

    def mask(self, share: float) -> Tensor:
        """The top `share` as a mask of the matrix's shape."""
        mask = torch.zeros(self.shape.numel(), dtype=torch.bool)
        mask[self.places[share].long()] = True
        return mask.view(self.shape)


ByMatrix = Mapping[str, Tops]  # by the parameter's full name
Chosen = Mapping[str, Tensor]  # masks, by the same names


def tops(scores: Tensor, shares: Iterable[float]) -> Tops:
    """Find the round(share · n) highest scores for each share, but none that is 0 or below."""
    flat = scores.flatten()
    return Tops(scores.shape, {share: _highest(flat, round(share * len(flat))) for share in shares})


def _highest(flat: Tensor, count: int) -> Tensor:
    values, places = flat.topk(count)
    return places[values > 0].to(torch.int32)


def reduced(scores: Scores, shares: Sequence[float]) -> ByMatrix:
    """Return `tops` of every matrix; each matrix's scores are removed from `scores` afterwards."""
    return {name: tops(scores.pop(name), shares) for name in list(scores)}


def set_difference(forget: Tops, retain: Tops, share: float, keep: float) -> Tensor:
    """A mask of one matrix's top `share` by `forget` without the top `keep` by `retain`."""
    return forget.mask(share) & ~retain.mask(keep)


def drawn(allowed: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Draw a mask of `count` units among those `allowed`, or of all if there are fewer."""
    places = allowed.flatten().nonzero()[:, 0]
    picked = places[torch.randperm(len(places), generator=draws)[:count]]
    mask = torch.zeros(allowed.numel(), dtype=torch.bool)
    mask[picked] = True
    return mask.view(allowed.shape)


@dataclass(frozen=True)
class Choices:
    """Masks by matrix, from scores that are computed when the first mask is asked for.

    `keep`: the share of highest score on retain texts, which stays. `seed` draws random units.
    """

    forget: Callable[[], ByMatrix]
    retain: Callable[[], ByMatrix]
    keep: float
    seed: int

    def of_forget(self, share: float) -> Chosen:
        """Units that matter for forget texts and not for retain texts."""
        forget, retain = self.forget(), self.retain()
        return {
            name: set_difference(forget[name], retain[name], share, self.keep) for name in forget
        }

    def random(self, share: float) -> Chosen:
        """As many random units of each matrix, among those that may be pruned."""
        retain, draws = self.retain(), generator(self.seed, "random units", str(share))
        return {
            name: drawn(~retain[name].mask(self.keep), int(mask.sum()), draws)
            for name, mask in self.of_forget(share).items()
        }
