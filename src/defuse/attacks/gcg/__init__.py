"""GCG suffixes: odd text that breaks an unlearned model, or brings knowledge back."""

from defuse.attacks.gcg.attack import GCG, KIND, run

__all__ = ["GCG", "KIND", "run"]
