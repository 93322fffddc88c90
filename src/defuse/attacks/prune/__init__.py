"""Set-difference pruning: what serves the forget set alone, removed."""

from defuse.attacks.prune.attack import KIND, Pruning, run

__all__ = ["KIND", "Pruning", "run"]
