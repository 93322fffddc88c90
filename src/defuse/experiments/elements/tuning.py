"""Which settings and which noise to keep, from answers to the tuning questions."""

from collections.abc import Mapping

from defuse.experiments.core.answers import Answers
from defuse.experiments.core.selection import Trial, best_defence, trials
from defuse.experiments.elements.grid import Run


def sentences(finished: Mapping[Run, Mapping[int, Answers]], base: Answers) -> list[str]:
    """For each method and retain loss its trials, the one to keep first, and the noise to keep."""
    lines = []
    for pair in dict.fromkeys((run.method, run.retain) for run in finished):
        own = {run: steps for run, steps in finished.items() if (run.method, run.retain) == pair}
        plain = trials({r: s for r, s in own.items() if not r.rna}, base)
        lines += [" / ".join(pair), *(f"  {_said(trial)}" for trial in plain)]
        noised = trials({run: steps for run, steps in own.items() if run.rna}, base)
        if not (plain and noised):
            continue
        lines += ["  with noise", *(f"  {_said(trial)}" for trial in noised)]
        same = [p for p in plain if p.run.changes == noised[0].run.changes[:-1]]
        last = max(same, key=lambda each: each.step, default=plain[0])
        final = [each for each in noised if each.step == last.step]
        best = best_defence(final, last)
        lines.append(f"  noise to keep: {_said(best) if best else 'none, all cost too much'}")
    return lines


def _said(trial: Trial[Run]) -> str:
    settings = " ".join(c for c in trial.run.changes if not c.startswith("steps="))
    return f"{settings}, {trial}"
