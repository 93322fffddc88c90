"""Trigger search: the natural words that disturb retain questions most."""

from defuse.attacks.triggers.attack import NAME, check, run
from defuse.attacks.triggers.config import TriggerSearch

__all__ = ["NAME", "TriggerSearch", "check", "run"]
