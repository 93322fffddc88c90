"""Attacks that try to recover unlearned knowledge or to break an unlearned model.

Each attack is a folder with `check(model, tokenizer, data, config)`, which raises UsageError for
what the attack refuses, and `run(model, tokenizer, data, config) -> Result`.
"""

from defuse.attacks.data import AttackData
from defuse.attacks.findings import Cost, Findings, open_findings
from defuse.attacks.results import Condition, Effect, Example, Figures, Result

__all__ = [
    "AttackData",
    "Condition",
    "Cost",
    "Effect",
    "Example",
    "Figures",
    "Findings",
    "Result",
    "open_findings",
]
