"""Relearning: a little fine-tuning, beside a model that never knew."""

from defuse.attacks.relearn.attack import KIND, Relearning, run

__all__ = ["KIND", "Relearning", "run"]
