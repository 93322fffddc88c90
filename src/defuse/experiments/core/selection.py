"""One rule for choosing settings, from answers to questions that no report uses.

It looks at what was forgotten and what was lost, never at what a forget-term does. Only of the
defences that cost no more than none the one is kept that holds best after a forget-term.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from defuse.experiments.core.answers import CLEAN, FORGET, Answers, R
from defuse.experiments.core.metrics import CHANCE, RIGHT, TOLERANCE, mean, shared_ids


@dataclass(frozen=True)
class Trial(Generic[R]):
    """A checkpoint of a tuning run; accuracies are shares of the questions all trials were asked.

    `cost`: what is still known of the forget domain above chance, and what was lost of the others.
    """

    run: R
    step: int
    forget: float
    clean: float
    after_term: float
    cost: float

    def __str__(self) -> str:
        return (
            f"step {self.step}: forget {self.forget:.2f}, others {self.clean:.2f}, "
            f"after a forget-term {self.after_term:.2f}, cost {self.cost:.2f}"
        )


def trials(
    finished: Mapping[R, Mapping[int, Answers]], base: Answers, form: str = "before/forget"
) -> list[Trial[R]]:
    """Every checkpoint, the cheapest first; of equals the one with fewer steps.

    `form`: the questions of `after_term`.
    """
    sheets = [sheet for steps in finished.values() for sheet in steps.values()]
    ids, kept = shared_ids(FORGET, sheets, base), shared_ids(CLEAN, sheets, base)
    known = mean(base, CLEAN, kept, RIGHT)

    def trial(run: R, step: int, sheet: Answers) -> Trial[R]:
        forget, clean = mean(sheet, FORGET, ids, RIGHT), mean(sheet, CLEAN, kept, RIGHT)
        after_term = mean(sheet, form, kept, RIGHT)
        cost = max(0.0, forget - CHANCE) + max(0.0, known - clean)
        return Trial(run, step, forget, clean, after_term, cost)

    found = [trial(run, step, s) for run, steps in finished.items() for step, s in steps.items()]
    return sorted(found, key=lambda each: (each.cost, each.step))


def best_defence(defended: Sequence[Trial[R]], plain: Trial[R]) -> Trial[R] | None:
    """The noise or share that holds best after a forget-term at about the cost of none."""
    cheap = [each for each in defended if each.cost <= plain.cost + TOLERANCE]
    return max(cheap, key=lambda each: each.after_term, default=None)
