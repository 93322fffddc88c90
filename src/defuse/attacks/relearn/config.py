"""Settings of the relearning attack."""

from dataclasses import dataclass

from defuse.attacks.data import FORGET, RETAIN
from defuse.utils.config import Count, Length, Natural, Positive, check_fields
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

    texts: tuple[Natural, ...] = (0, 10, 100, 1000)
    source: tuple[str, ...] = (FORGET, RETAIN)
    steps: Count = 300
    checkpoints: Count = 5
    batch_size: Count = 1
    learning_rate: Positive = 2e-4
    lora: Count | None = 128
    length: Length = 1024
    recompute: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self, "relearn")
        require(bool(self.texts), "relearn.texts", self.texts, "must name at least one number")
        require(bool(self.source), "relearn.source", self.source, "must name forget or retain")
        for source in self.source:
            remedy = "is unknown; use one of forget, retain"
            require(source in (FORGET, RETAIN), "relearn.source", source, remedy)

    @property
    def asked_at(self) -> list[int]:
        """The numbers of steps after which the copy is asked."""
        return sorted({-(-self.steps // 2**halvings) for halvings in range(self.checkpoints)})
