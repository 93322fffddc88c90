"""Comparisons in words."""

from defuse.experiments.core.metrics import Matched
from defuse.report.format import interval


def sentence(name: str, matched: Matched | None, defence: str = "RNA") -> str:
    """What `match` found of a defence, in words."""
    if matched is None:
        return f"{name}: no checkpoints with and without {defence} forgot and kept alike."
    pairs = len(matched.steps)
    return (
        f"{name}: at equal forgetting and keeping ({pairs} pair{'s' * (pairs > 1)} of checkpoints, "
        f"{matched.n} questions), {defence} changes the accuracy after a forget-term by "
        f"{interval(matched.accuracy)} and the right answer's log-probability by "
        f"{interval(matched.logprob)} nats."
    )
