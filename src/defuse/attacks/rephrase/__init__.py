"""Rephrasing: the same questions in other words."""

from defuse.attacks.rephrase.attack import NAME, check, run
from defuse.attacks.rephrase.config import Rephrasing

__all__ = ["NAME", "Rephrasing", "check", "run"]
