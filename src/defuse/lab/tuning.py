"""Which settings, noise and share of mixed texts to keep, from answers to the tuning questions."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from defuse.experiment.answers import Answers
from defuse.experiment.tuning import Trial, best_defence, trials
from defuse.lab.compare import Finished
from defuse.lab.grid import SETTINGS, Run

JUDGED = "statement/forget"  # the form that defences are told apart by
ADVISED = 8  # trials shown of each method and retain loss


def sentences(finished: Finished, base: Answers) -> Iterator[str]:
    """For each method and retain loss its trials, the one to keep first, and the defences."""
    for pair in dict.fromkeys((run.method, run.retain) for run in finished):
        own = {run: steps for run, steps in finished.items() if (run.method, run.retain) == pair}
        plain = trials({r: s for r, s in own.items() if r.arm == "none"}, base, JUDGED)
        yield from (" / ".join(pair), *map(_said, plain[:ADVISED]))
        usual = [trial for trial in plain if trial.run.setting == SETTINGS[pair]]
        if usual:
            last = max(usual, key=lambda trial: trial.step)
            yield f"  without a defence: {_said(last)}"
            for arm in ("rna", "mixed"):
                defended = trials({r: s for r, s in own.items() if r.arm == arm}, base, JUDGED)
                yield from _defence(arm, [t for t in defended if t.step == last.step], last)


def _defence(arm: str, defended: Sequence[Trial[Run]], plain: Trial[Run]) -> Iterator[str]:
    if defended:
        best = best_defence(defended, plain)
        yield from map(_said, defended)
        yield f"  {arm} to keep: {_said(best) if best else 'none, all cost too much'}"


def _said(trial: Trial[Run]) -> str:
    run = trial.run
    fields = asdict(run.setting) | {"noise": run.noise, "mix": run.mix}
    given = " ".join(f"{k}={v}" for k, v in fields.items() if k != "steps" and v is not None)
    return f"  {given}, {trial}"
