"""Settings of the orthogonalisation attack."""

from dataclasses import dataclass
from typing import Literal, get_args

from defuse.attacks.passages import check_drawing
from defuse.utils.errors import check_choices, require

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
