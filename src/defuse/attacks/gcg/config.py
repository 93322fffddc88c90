"""Settings of the search for suffixes."""

from dataclasses import dataclass
from typing import Literal, get_args

from defuse.attacks.data import FORGET, RETAIN
from defuse.utils.config import Count, Natural, Positive, Share, check_fields
from defuse.utils.errors import require

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
    steps: Count = 500
    search_width: Count = 512
    topk: Count = 256
    n_replace: Count = 1
    buffer_size: Natural = 0
    length: Count = 20
    place: Where = "end"
    init: str = "x"
    allow_non_ascii: bool = False
    train_share: Share = 0.5
    questions: Natural = 25
    margin: Positive | None = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self, "gcg")
        for name, options in (("aims", get_args(Aim)), ("modes", get_args(Mode))):
            chosen = getattr(self, name)
            require(bool(chosen), f"gcg.{name}", chosen, f"must be some of {', '.join(options)}")
        few = self.n_replace <= self.length
        require(few, "gcg.n_replace", self.n_replace, f"exceeds the length, {self.length}")
        share = 0 < self.train_share < 1
        require(share, "gcg.train_share", self.train_share, "must lie between 0 and 1")
