"""Logit lens and linear probe: the answer that each layer's hidden states give."""

from defuse.attacks.lens.attack import NAME, check, run
from defuse.attacks.lens.config import Lens

__all__ = ["NAME", "Lens", "check", "run"]
