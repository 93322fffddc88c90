"""Which settings to keep, by one rule, from answers to the tuning questions.

The rule looks at what was forgotten and what was lost, never at what a forget-term does, except
where the noise is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defuse.experiment.answers import CLEAN, FORGET, Answers
from defuse.experiment.compare import CHANCE, RIGHT, TOLERANCE, mean, shared_ids
from defuse.real.grid import Run


@dataclass(frozen=True)
class Trial:
    """A checkpoint of a tuning run; accuracies are shares of the questions all trials were asked.

    `cost`: what is still known of the forget domain above chance, and what was lost of the others.
    """

    run: Run
    step: int
    forget: float
    clean: float
    after_term: float
    cost: float

    def __str__(self) -> str:
        settings = " ".join(c for c in self.run.changes if not c.startswith("steps="))
        return (
            f"{settings}, step {self.step}: forget {self.forget:.2f}, others {self.clean:.2f}, "
            f"after a forget-term {self.after_term:.2f}, cost {self.cost:.2f}"
        )


def trials(finished: Mapping[Run, Mapping[int, Answers]], base: Answers) -> list[Trial]:
    """Every checkpoint, the cheapest first; of equals the one with fewer steps."""
    sheets = [sheet for steps in finished.values() for sheet in steps.values()]
    ids, kept = shared_ids(FORGET, sheets, base), shared_ids(CLEAN, sheets, base)
    known = mean(base, CLEAN, kept, RIGHT)

    def trial(run: Run, step: int, sheet: Answers) -> Trial:
        forget, clean = mean(sheet, FORGET, ids, RIGHT), mean(sheet, CLEAN, kept, RIGHT)
        after_term = mean(sheet, "before/forget", kept, RIGHT)
        cost = max(0.0, forget - CHANCE) + max(0.0, known - clean)
        return Trial(run, step, forget, clean, after_term, cost)

    found = [trial(run, step, s) for run, steps in finished.items() for step, s in steps.items()]
    return sorted(found, key=lambda each: (each.cost, each.step))


def best_noise(noised: Sequence[Trial], plain: Trial) -> Trial | None:
    """The noise that holds best after a forget-term at about the cost of none."""
    cheap = [each for each in noised if each.cost <= plain.cost + TOLERANCE]
    return max(cheap, key=lambda each: each.after_term, default=None)


def sentences(finished: Mapping[Run, Mapping[int, Answers]], base: Answers) -> list[str]:
    """For each method and retain loss its trials, the one to keep first, and the noise to keep."""
    lines = []
    for pair in dict.fromkeys((run.method, run.retain) for run in finished):
        own = {run: steps for run, steps in finished.items() if (run.method, run.retain) == pair}
        plain = trials({r: s for r, s in own.items() if not r.rna}, base)
        lines += [" / ".join(pair), *(f"  {trial}" for trial in plain)]
        noised = trials({run: steps for run, steps in own.items() if run.rna}, base)
        if not (plain and noised):
            continue
        lines += ["  with noise", *(f"  {trial}" for trial in noised)]
        same = [p for p in plain if p.run.changes == noised[0].run.changes[:-1]]
        last = max(same, key=lambda each: each.step, default=plain[0])
        final = [each for each in noised if each.step == last.step]
        lines.append(f"  noise to keep: {best_noise(final, last) or 'none, all cost too much'}")
    return lines
