"""Orthogonalisation: the direction that unlearning added, removed."""

from defuse.attacks.orthogonalise.attack import KIND, Orthogonalisation, run

__all__ = ["KIND", "Orthogonalisation", "run"]
