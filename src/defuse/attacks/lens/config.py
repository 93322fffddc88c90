"""Settings of the logit lens and the linear probe."""

from dataclasses import dataclass

from defuse.utils.errors import require


@dataclass(frozen=True)
class Lens:
    """`folds`: parts of the questions for the probe, each held out once; 0 means no probe.
    `penalty`: L2 penalty of its weights, times ½‖W‖² beside the summed loss. `shuffles`: draws of
    shuffled labels for its control. `seed` draws folds, labels, halves and bootstraps."""

    folds: int = 5
    penalty: float = 1.0
    shuffles: int = 3
    seed: int = 42

    def __post_init__(self) -> None:
        require(self.folds == 0 or self.folds > 1, "lens.folds", self.folds, "must be 0 or above 1")
        require(0 < self.penalty < float("inf"), "lens.penalty", self.penalty, "must be above 0")
        require(self.shuffles > 0, "lens.shuffles", self.shuffles, "must be at least 1")
