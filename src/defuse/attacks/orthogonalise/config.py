"""Settings of the orthogonalisation attack."""

from dataclasses import dataclass
from typing import Literal, get_args

from defuse.utils.config import Count, Length, check_fields
from defuse.utils.errors import require

Way = Literal["all", "each", "strongest", "weights"]


@dataclass(frozen=True)
class Orthogonalisation:
    """How directions are found and removed.

    `ways`: "all" removes from each block's output the direction of its own layer, in all blocks at
    once; "each" does so in one block after the other; "strongest" removes the direction of the
    layer that differs most from every block's output; "weights" removes the same direction from the
    weights. `source`: the mean difference on forget texts, or that minus the one on retain texts.
    `to`: what remains of the component: nothing, or the reference's mean on forget texts. `texts`:
    drawn from each set, each of at most `length` tokens, `batch_size` at a time. `seed` draws
    texts, random directions, halves and bootstraps.
    """

    ways: tuple[Way, ...] = ("all", "each", "strongest", "weights")
    source: Literal["forget", "forget - retain"] = "forget"
    to: Literal["zero", "reference mean"] = "zero"
    texts: Count = 128
    length: Length = 256
    batch_size: Count = 8
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self, "orthogonalise")
        remedy = f"must name one or more of {', '.join(get_args(Way))}"
        require(bool(self.ways), "orthogonalise.ways", self.ways, remedy)
        fits = self.to == "zero" or "weights" not in self.ways
        remedy = "is more than weights can hold; take 'weights' out of orthogonalise.ways"
        require(fits, "orthogonalise.to", self.to, remedy)
