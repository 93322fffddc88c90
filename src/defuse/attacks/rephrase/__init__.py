"""Rephrasings: the same questions in other words."""

from defuse.attacks.rephrase.attack import KIND, Rephrasing, run

__all__ = ["KIND", "Rephrasing", "run"]
