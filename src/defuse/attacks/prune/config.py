"""Settings of the pruning attack."""

from dataclasses import dataclass
from typing import Literal

from defuse.utils.config import Count, Length, Share, check_fields
from defuse.utils.errors import require


@dataclass(frozen=True)
class Pruning:
    """`shares`: of each matrix's units, those of highest score on forget texts, tried in turn.
    `keep`: the share of highest score on retain texts, which is never pruned. `unit`: "neuron" is
    one of an MLP, "weight" one of any linear module in the blocks, as in the paper. `score`: "snip"
    is mean |∂L/∂c|; "signed" is mean ∂L/∂c on forget texts, so that only units that raise their
    loss are pruned. `texts`: drawn from each set, each of at most `length` tokens, `batch_size` at
    a time (for weights, one). `seed` draws texts, random units and bootstraps."""

    shares: tuple[Share, ...] = (0.005, 0.01, 0.025, 0.05)
    keep: Share = 0.05
    unit: Literal["neuron", "weight"] = "neuron"
    score: Literal["snip", "signed"] = "snip"
    texts: Count = 128
    length: Length = 256
    batch_size: Count = 4
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self, "prune")
        require(bool(self.shares), "prune.shares", self.shares, "must name at least one share")
        for share in self.shares:
            require(share > 0, "prune.shares", share, "must be above 0 and at most 1")
        require(self.keep < 1, "prune.keep", self.keep, "must be from 0 to below 1")
