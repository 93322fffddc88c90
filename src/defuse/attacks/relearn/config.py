"""Settings of the relearning attack."""

import math
from dataclasses import dataclass

from defuse.attacks.data import FORGET, RETAIN
from defuse.utils.errors import require


@dataclass(frozen=True)
class Relearning:
    """`texts`: numbers of texts to train on (k) from each `source`, each from the start; 0 is the
    model without training.

    Each training takes `steps` of AdamW with `batch_size` texts each, and the copy is asked
    `checkpoints` times during it, each time after twice as many steps. `lora`: rank of the factors
    beside all linear modules of the blocks (alpha 16); None trains every weight, which needs about
    a tenth of the learning rate. Texts are cut after `length` tokens. `recompute` runs blocks again
    in the backward pass instead of storing their activations: less memory, more time. `seed` draws
    texts, their order, the factors and bootstraps. The defaults are those of 2409.18025's code for
    100 texts (3 epochs), but at a constant rate, without weight decay and clipping.
    """

    texts: tuple[int, ...] = (0, 10, 100, 1000)
    source: tuple[str, ...] = (FORGET, RETAIN)
    steps: int = 300
    checkpoints: int = 5
    batch_size: int = 1
    learning_rate: float = 2e-4
    lora: int | None = 128
    length: int = 1024
    recompute: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        require(bool(self.texts), "relearn.texts", self.texts, "must name at least one number")
        for texts in self.texts:
            require(texts >= 0, "relearn.texts", texts, "must not be negative")
        require(bool(self.source), "relearn.source", self.source, "must name forget or retain")
        for source in self.source:
            remedy = "is unknown; use one of forget, retain"
            require(source in (FORGET, RETAIN), "relearn.source", source, remedy)
        for field in ("steps", "checkpoints", "batch_size"):
            value = getattr(self, field)
            require(value > 0, f"relearn.{field}", value, "must be at least 1")
        require(self.lora is None or self.lora > 0, "relearn.lora", self.lora, "must be at least 1")
        require(self.length > 1, "relearn.length", self.length, "is below 2")
        rate, remedy = self.learning_rate, "must be a finite number above 0"
        require(0 < rate < math.inf, "relearn.learning_rate", rate, remedy)

    @property
    def asked_at(self) -> list[int]:
        """The numbers of steps after which the copy is asked."""
        return sorted({-(-self.steps // 2**halvings) for halvings in range(self.checkpoints)})
