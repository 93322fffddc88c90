"""Settings of the quantisation attack."""

from dataclasses import dataclass
from typing import Literal

from defuse.attacks.quantise.backends import BACKENDS
from defuse.utils.config import Count, Natural, check_fields
from defuse.utils.errors import require


@dataclass(frozen=True)
class Quantisation:
    """`bits`: of each weight, tried in turn. `group_size`: number of inputs that share a scale; 0
    is a whole row (bitsandbytes has groups of its own). `backend`: which library quantises. `seed`
    draws bootstraps."""

    bits: tuple[Count, ...] = (8, 4)
    group_size: Natural = 128
    backend: Literal["simulated", "torchao", "bitsandbytes"] = "simulated"
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self, "quantise")
        require(bool(self.bits), "quantise.bits", self.bits, "must name at least one width")
        can = BACKENDS[self.backend].bits
        for bits in self.bits:
            remedy = f"is no width of {self.backend} weights: use {' or '.join(map(str, can))}"
            require(bits in can, "quantise.bits", bits, remedy)
