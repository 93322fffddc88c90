"""Fine-tuning: makes a model that knows a set of texts, or a retrained model that does not."""

from defuse.finetune.examples import Example, make_examples
from defuse.finetune.train import FineTuning, fine_tune

__all__ = ["Example", "FineTuning", "fine_tune", "make_examples"]
