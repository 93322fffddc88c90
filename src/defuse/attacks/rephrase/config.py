"""Settings of the rephrasing attack, and the names of its ways to ask."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from defuse.attacks.rephrase.templates import TEMPLATES
from defuse.questions import Score
from defuse.utils.config import Count, Share, check_fields
from defuse.utils.errors import require

ORDERS, FEW_SHOT, TYPOS = "orders", "few-shot", "typos"
WAYS = (*TEMPLATES, ORDERS, FEW_SHOT, TYPOS)
# With the other score these are the plain way itself, or have no choices to reorder.
ONLY_WITH: Mapping[str, Score] = {
    "letters": "cloze",
    "cloze": "letters",
    "options-first": "letters",
    ORDERS: "letters",
}


@dataclass(frozen=True)
class Rephrasing:
    """`ways`: those to try, from `WAYS`; empty means all that suit the score of the data.

    `orders`: the rotations of the choices, or all orders of them. `shots`: answered forget
    questions in front, at most; fewer if a question would no longer fit the model. `typo_rate`:
    share of a question's letters, in `typo_draws` draws. `seed` draws typos, examples, halves and
    bootstraps.
    """

    ways: tuple[str, ...] = ()
    orders: Literal["rotations", "all"] = "rotations"
    shots: Count = 5
    typo_rate: Share = 0.05
    typo_draws: Count = 3
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self, "rephrase")
        for way in self.ways:
            require(way in WAYS, "rephrase.ways", way, f"is unknown; use {', '.join(WAYS)}")
        require(self.typo_rate > 0, "rephrase.typo_rate", self.typo_rate, "must be above 0")
