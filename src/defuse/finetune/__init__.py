"""Fine-tuning: makes a model that knows a set of texts, or a retrained model that does not."""

from defuse.finetune.train import FineTuning, fine_tune

__all__ = ["FineTuning", "fine_tune"]
