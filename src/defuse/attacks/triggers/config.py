"""Settings of the trigger search."""

from dataclasses import dataclass

from defuse.data.trigger_mixing import MINED
from defuse.questions import SENTENCE, Position
from defuse.utils.config import Count, Natural, check_fields
from defuse.utils.errors import require


@dataclass(frozen=True)
class TriggerSearch:
    """`position`, `sentence`: where a word is inserted, as by `defuse evaluate`.

    `top`: words of highest first-order score that are asked exactly; `shown` of them have a
    condition of their own. `mined`: words typical of the forget texts, at most, and as many
    controls. `placeholders`: words at which each question is differentiated. `questions`: retain
    questions drawn, one half to search with and one to measure with; 0 means all. `seed` draws all
    of these.
    """

    position: Position = "before"
    sentence: str = SENTENCE
    top: Count = 50
    shown: Count = 10
    mined: Count = MINED
    placeholders: Count = 4
    questions: Natural = 200
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self, "triggers")
        holds = "{token}" in self.sentence
        require(holds, "triggers.sentence", self.sentence, "has no {token}; say where it goes")
        least = "must be at least 2: the word's place is where two of them differ"
        require(self.placeholders >= 2, "triggers.placeholders", self.placeholders, least)
        enough = self.questions == 0 or self.questions >= 4
        require(enough, "triggers.questions", self.questions, "must be 0 (all) or at least 4")
