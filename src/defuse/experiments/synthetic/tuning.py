"""Which settings, noise and share of mixed texts to keep, from answers to the tuning questions."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from defuse.experiments.core.answers import CLEAN, FORGET, Answers
from defuse.experiments.core.metrics import RIGHT, mean
from defuse.experiments.core.selection import Trial, best_defence, trials
from defuse.experiments.synthetic.compare import Finished
from defuse.experiments.synthetic.grid import REGIMES, SETTINGS, Run
from defuse.report.format import markdown_table

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


REGIME_COLUMNS = ("layer", "parameters", "c, norms", "weight", "step", "forget set", "retain set")
REGIME_FORMS = (FORGET, CLEAN, "before/control", "before/forget", "statement/control", JUDGED)


def regimes(finished: Finished, base: Answers) -> str:
    """RMU at every layer: each setting's cheapest checkpoint, and what a trigger does there."""
    rows = []
    for run, steps in finished.items():
        if (run.method, run.retain) == REGIMES and run.arm == "none":
            best, setting = trials({run: steps}, base)[0].step, run.setting
            numbers = (setting.strength, setting.weight)
            given = [
                str(setting.layer),
                setting.parameters,
                *(f"{n:g}" for n in numbers),
                str(best),
            ]
            ids = {form: list(steps[best][form]) for form in REGIME_FORMS}
            shares = (mean(steps[best], form, ids[form], RIGHT) for form in REGIME_FORMS)
            rows.append([*given, *(f"{share:.2f}" for share in shares)])
    return markdown_table([*REGIME_COLUMNS, *REGIME_FORMS[2:]], sorted(rows))


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
