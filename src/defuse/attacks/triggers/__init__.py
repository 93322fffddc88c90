"""Trigger search: which natural words disturb innocent questions."""

from defuse.attacks.triggers.attack import KIND, TriggerSearch, run

__all__ = ["KIND", "TriggerSearch", "run"]
