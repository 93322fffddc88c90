"""Relearning: fine-tuning on a few texts."""

from defuse.attacks.relearn.attack import NAME, check, run
from defuse.attacks.relearn.config import Relearning

__all__ = ["NAME", "Relearning", "check", "run"]
