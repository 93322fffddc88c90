"""Set-difference pruning: the units that serve the forget set alone, removed."""

from defuse.attacks.prune.attack import NAME, check, run
from defuse.attacks.prune.config import Pruning

__all__ = ["NAME", "Pruning", "check", "run"]
