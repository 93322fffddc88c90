"""How suffixes are searched for."""

from dataclasses import dataclass
from typing import Literal, get_args

from defuse.attacks.data import FORGET, RETAIN
from defuse.utils.errors import check_choices, require

Aim = Literal["break", "recover"]
Mode = Literal["universal", "question"]
Where = Literal["question", "end"]
# Whose questions each aim is about.
AIMED: dict[Aim, str] = {"break": RETAIN, "recover": FORGET}


@dataclass(frozen=True)
class GCG:
    """Greedy coordinate gradient (Zou et al. 2307.15043), in the paper's numbers by default.

    `aims`: "break" (a retain question gets a wrong answer) and "recover" (a forget question is
    answered rightly). `modes`: "universal" (one suffix for many questions, tried on others) and
    "question" (each gets its own).
    `place`: the suffix stands on a line of its own behind the choices at the "end" (of a prompt, as
    nanoGCG's), or behind the "question"; a prompt of a question's own (cloze scoring) takes it at
    its end.
    `steps` at most, in each `search_width` suffixes that replace `n_replace` random tokens by ones
    of the `topk` best by gradient. `buffer_size` best suffixes are kept, and the best goes on; with
    0 the newest does. `length`: tokens of a suffix, each `init` to begin with, or drawn where
    `init` is "". Tokens are printable ASCII unless `allow_non_ascii`.
    `train_share`: of a set, what a universal suffix may be searched on; the rest is held out.
    `questions`: how many are searched on at most, in either mode; 0 = no limit. `margin`: nats by
    which every answer must be as aimed for a search to end early; None = never. `seed` draws
    everything.
    """

    aims: tuple[Aim, ...] = get_args(Aim)
    modes: tuple[Mode, ...] = get_args(Mode)
    steps: int = 500
    search_width: int = 512
    topk: int = 256
    n_replace: int = 1
    buffer_size: int = 0
    length: int = 20
    place: Where = "end"
    init: str = "x"
    allow_non_ascii: bool = False
    train_share: float = 0.5
    questions: int = 25
    margin: float | None = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        check_choices(self, "gcg.")
        for name, options in (("aims", get_args(Aim)), ("modes", get_args(Mode))):
            chosen = getattr(self, name)
            known = bool(chosen) and set(chosen) <= set(options)
            require(known, f"gcg.{name}", chosen, f"must be some of {', '.join(options)}")
        for name in ("steps", "search_width", "topk", "n_replace", "length"):
            require(getattr(self, name) >= 1, f"gcg.{name}", getattr(self, name), "must be above 0")
        for name in ("buffer_size", "questions"):
            value = getattr(self, name)
            require(value >= 0, f"gcg.{name}", value, "must not be negative")
        few = self.n_replace <= self.length
        require(few, "gcg.n_replace", self.n_replace, f"exceeds the length, {self.length}")
        share = 0 < self.train_share < 1
        require(share, "gcg.train_share", self.train_share, "must lie between 0 and 1")
        require(
            self.margin is None or self.margin > 0,
            "gcg.margin",
            self.margin,
            "must be above 0, or None to search on",
        )
