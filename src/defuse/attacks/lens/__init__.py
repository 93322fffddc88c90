"""Logit lens and linear probe: what each layer still says."""

from defuse.attacks.lens.attack import KIND, Lens, run

__all__ = ["KIND", "Lens", "run"]
