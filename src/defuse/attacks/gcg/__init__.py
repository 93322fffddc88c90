"""GCG suffixes: odd text that breaks an unlearned model, or brings knowledge back."""

from defuse.attacks.gcg.attack import NAME, check, run
from defuse.attacks.gcg.config import GCG

__all__ = ["GCG", "NAME", "check", "run"]
