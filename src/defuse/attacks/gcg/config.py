"""Settings of the search for suffixes."""

from dataclasses import dataclass
from typing import Literal, get_args

from defuse.attacks.data import FORGET, RETAIN
from defuse.utils.errors import check_choices, require

Aim = Literal["break", "recover"]
Mode = Literal["universal", "question"]
Where = Literal["question", "end"]
# The question set of each aim.
AIMED: dict[Aim, str] = {"break": RETAIN, "recover": FORGET}


@dataclass(frozen=True)
class GCG:
    """Greedy coordinate gradient (Zou et al. 2307.15043), with that paper's numbers by default.

    `aims`: "break" (a retain question is answered wrong) and "recover" (a forget question is
    answered right). `modes`: "universal" (one suffix for many questions, tried on others) and
    "question" (each question has its own).
    `place`: "end" puts the suffix on a line of its own after the choices (the end of the prompt, as
    in nanoGCG), "question" after the question's text; a question with a prompt of its own (cloze
    scoring) takes it at the end of that.
    `steps`: at most; each scores `search_width` suffixes in which `n_replace` random tokens are
    replaced by one of the `topk` best by gradient. `buffer_size`: so many best suffixes are kept,
    and each step starts from the best; with 0, from the newest. `length`: tokens of a suffix, each
    `init` at the start, or drawn if `init` is "". Tokens are printable ASCII unless
    `allow_non_ascii`.
    `train_share`: the share of a set that a universal suffix may be searched on; the rest is held
    out. `questions`: how many are searched on at most, in either mode; 0 is no limit. `margin`: a
    search ends early once every answer is as aimed for by so many nats; None is never. `seed` draws
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
