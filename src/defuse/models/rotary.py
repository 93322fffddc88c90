"""Rotary factors that depend on the length of a text: longrope and dynamic scaling.

Such a model reads the same token at the same position in another way in a longer text. Texts of
different lengths may then share neither a KV cache nor the factors of a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

Factors = tuple[Tensor, Tensor]  # cosine and sine, each (batch, time, rotary size)


@dataclass(frozen=True)
class LengthClasses:
    """Which lengths of a text have the same rotary factors.

    Above each of `switches` another set of factors holds (longrope). Above `grows_from` every
    length has its own (dynamic scaling).
    """

    switches: tuple[int, ...] = ()
    grows_from: int | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "LengthClasses":
        """The classes of a model, by the scaling in its configuration."""
        given: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
        # Gemma 3 has such a mapping for each type of attention.
        each = [g for g in given.values() if isinstance(g, Mapping)]
        scalings = each if each and "rope_type" not in given else [given]
        kinds = [(str(scaling.get("rope_type", "default")), scaling) for scaling in scalings]
        longest = getattr(config, "max_position_embeddings", None)
        dynamic = any("dynamic" in kind for kind, _ in kinds)
        switches = {
            int(scaling["original_max_position_embeddings"])
            for kind, scaling in kinds
            if kind == "longrope" and scaling["short_factor"] != scaling["long_factor"]
        }
        return cls(tuple(sorted(switches)), longest if dynamic else None)

    @property
    def vary(self) -> bool:
        return bool(self.switches) or self.grows_from is not None

    @property
    def shortest(self) -> int:
        """The longest text that still has the factors of short ones, for models that vary."""
        return min((*self.switches, *(() if self.grows_from is None else (self.grows_from,))))

    def representative(self, length: int) -> int:
        """A length that stands for all lengths with the same factors as `length`.

        It is 0 for those of short texts.
        """
        if self.grows_from is not None and length > self.grows_from:
            return length
        return max((switch + 1 for switch in self.switches if length > switch), default=0)

    def factors(
        self, rotary: Callable[[Tensor], Factors], positions: Tensor, lengths: Tensor
    ) -> Factors:
        """The factors of each token by the length of its own text.

        `rotary` is transformers' module, which chooses by the largest position that it is given.
        `positions` and `lengths` (representatives) are broadcast to (batch, time).
        """
        positions, lengths = torch.broadcast_tensors(positions, lengths)
        cosine, sine = None, None
        for length in lengths.unique().tolist():
            own_cosine, own_sine = self._of_length(rotary, positions, length)
            if cosine is None or sine is None:
                cosine, sine = own_cosine, own_sine
            chosen = (lengths == length)[..., None]
            cosine = torch.where(chosen, own_cosine, cosine)
            sine = torch.where(chosen, own_sine, sine)
        assert cosine is not None  # noqa: S101 (a batch has a token)
        assert sine is not None  # noqa: S101
        return cosine, sine

    def _of_length(
        self, rotary: Callable[[Tensor], Factors], positions: Tensor, length: int
    ) -> Factors:
        rotary(torch.zeros_like(positions[:, :1]))  # lets dynamic scaling forget longer texts
        # Padding may be at positions that the text itself does not have.
        if length == 0:
            positions = positions.clamp(max=self.shortest - 1)
        elif self.grows_from is not None and length > self.grows_from:
            positions = positions.clamp(max=length - 1)
        last = positions.new_full((positions.shape[0], 1), max(length - 1, 0))
        cosine, sine = rotary(torch.cat([positions, last], dim=1))
        return cosine[:, :-1], sine[:, :-1]
