"""Teach a model texts or answers: the model that knows, and the gold standard that does not."""

from defuse.finetune.examples import Example, make_examples
from defuse.finetune.train import FineTuning, fine_tune

__all__ = ["Example", "FineTuning", "fine_tune", "make_examples"]
