"""Quantisation: the weights rounded to few bits."""

from defuse.attacks.quantise.attack import NAME, check, run
from defuse.attacks.quantise.config import Quantisation

__all__ = ["NAME", "Quantisation", "check", "run"]
