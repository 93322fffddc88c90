"""Quantisation: weights rounded to few bits."""

from defuse.attacks.quantise.attack import KIND, Quantisation, run

__all__ = ["KIND", "Quantisation", "run"]
