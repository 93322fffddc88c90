"""Quantisation: weights rounded to few bits."""

from defuse.attacks.quantise.attack import KIND, Quantisation, check_installed, run

__all__ = ["KIND", "Quantisation", "check_installed", "run"]
