"""Attacks: what brings unlearned knowledge back, and what breaks an unlearned model.

One folder for each kind, each with `run(model, tokenizer, material, config) -> Result`.
"""

from defuse.attacks.data import Material
from defuse.attacks.notes import Cost, Notes, open_notes
from defuse.attacks.results import Condition, Effect, Example, Figures, Result

__all__ = [
    "Condition",
    "Cost",
    "Effect",
    "Example",
    "Figures",
    "Material",
    "Notes",
    "Result",
    "open_notes",
]
