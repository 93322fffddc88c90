"""Orthogonalisation: the direction that unlearning added, removed."""

from defuse.attacks.orthogonalise.attack import NAME, check, run
from defuse.attacks.orthogonalise.config import Orthogonalisation

__all__ = ["NAME", "Orthogonalisation", "check", "run"]
