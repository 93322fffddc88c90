"""Settings of the logit lens and the linear probe."""

from dataclasses import dataclass

from defuse.utils.config import Count, Natural, Positive, check_fields
from defuse.utils.errors import require


@dataclass(frozen=True)
class Lens:
    """`folds`: parts of the questions for the probe, each held out once; 0 means no probe.
    `penalty`: L2 penalty of its weights, times ½‖W‖² beside the summed loss. `shuffles`: draws of
    shuffled labels for its control. `seed` draws folds, labels, halves and bootstraps."""

    folds: Natural = 5
    penalty: Positive = 1.0
    shuffles: Count = 3
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self, "lens")
        require(self.folds != 1, "lens.folds", self.folds, "must be 0 or above 1")
