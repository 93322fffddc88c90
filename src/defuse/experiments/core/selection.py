"""One rule for choosing settings, from answers to tuning questions that no report uses.

The rule looks at what is forgotten and what is lost, never at the harm of a forget-token. Of the
defences that cost no more than none, the one that holds best after a forget-token is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from defuse.experiments.core.answers import FORGET, FORGET_TOKEN, RETAIN, AnswerTable, Slice, slices
from defuse.experiments.core.metrics import TOLERANCE, Checkpoints, chance, mean, shared_ids
from defuse.experiments.core.scenario import Run
from defuse.experiments.core.tables import slice_name
from defuse.report import TableData

ADVISED = 8  # trials shown of each method


@dataclass(frozen=True)
class Trial:
    """A checkpoint of a tuning run; accuracies are over the questions that all trials answered.

    `cost`: what is still known of the forget set above chance, and what is lost of the retain sets.
    `after_forget_token` is None where no forget-token was tried.
    """

    run: Run
    step: int
    forget: float
    retain: float
    after_forget_token: float | None
    cost: float

    def __str__(self) -> str:
        after = self.after_forget_token
        harmed = "" if after is None else f", after a forget-token {after:.2f}"
        return (
            f"{self.run.said}, step {self.step}: forget {self.forget:.2f}, retain "
            f"{self.retain:.2f}{harmed}, cost {self.cost:.2f}"
        )


def trials(
    finished: Mapping[Run, Checkpoints], reference: AnswerTable, position: str | None
) -> list[Trial]:
    """Every checkpoint, the cheapest first; of equals the one with fewer steps."""
    tables = [table for steps in finished.values() for table in steps.values()]
    forget, retain = (shared_ids(part, tables, reference) for part in (FORGET, RETAIN))
    known, guess = mean(reference, RETAIN, retain, "correct"), chance(reference, FORGET)
    after = Slice("retain", FORGET_TOKEN, position)
    perturbed = bool(tables) and all(after in slices(table) for table in tables)
    ids = shared_ids(after, tables, reference) if perturbed else []

    def trial(run: Run, step: int, table: AnswerTable) -> Trial:
        left = mean(table, FORGET, forget, "correct")
        kept = mean(table, RETAIN, retain, "correct")
        harmed = mean(table, after, ids, "correct") if perturbed else None
        cost = max(0.0, left - guess) + max(0.0, known - kept)
        return Trial(run, step, left, kept, harmed, cost)

    found = [trial(run, step, t) for run, steps in finished.items() for step, t in steps.items()]
    return sorted(found, key=lambda each: (each.cost, each.step))


def settings_table(
    finished: Mapping[Run, Checkpoints], reference: AnswerTable, slices_: Sequence[Slice]
) -> TableData:
    """Each run without a defence at its cheapest checkpoint: accuracies on `slices_`."""
    plain = {run: steps for run, steps in finished.items() if run.defence == "none"}
    tables = [table for steps in plain.values() for table in steps.values()]
    ids = {part: shared_ids(part, tables, reference) for part in slices_}
    shown = [part for part in slices_ if ids[part]]
    rows = []
    for run, steps in plain.items():
        best = trials({run: steps}, reference, None)[0].step
        shares = (mean(steps[best], part, ids[part], "correct") for part in shown)
        said = " ".join([run.method, run.retain_loss, *run.settings])
        rows.append([said, str(best), *(f"{share:.2f}" for share in shares)])
    heads = ["setting", "step", *(f"{slice_name(part)} (n = {len(ids[part])})" for part in shown)]
    return TableData("Every setting without a defence at its cheapest checkpoint", heads, rows)


def best_defence(defended: Sequence[Trial], plain: Trial) -> Trial | None:
    """The defence that holds best after a forget-token at about the cost of none."""
    cheap = [each for each in defended if each.cost <= plain.cost + TOLERANCE]
    return max(cheap, key=lambda each: each.after_forget_token or 0.0, default=None)


def advice(
    finished: Mapping[Run, Checkpoints], reference: AnswerTable, position: str | None
) -> Iterator[str]:
    """For each method its cheapest trials, and for each defence the setting to keep.

    Defences are compared at the last step of the run without one that has the same settings.
    """
    for pair in dict.fromkeys((run.method, run.retain_loss) for run in finished):
        own = {r: s for r, s in finished.items() if (r.method, r.retain_loss) == pair}
        plain = trials({r: s for r, s in own.items() if r.defence == "none"}, reference, position)
        yield " / ".join(pair)
        yield from (f"  {trial}" for trial in plain[:ADVISED])
        for defence in dict.fromkeys(run.defence for run in own if run.defence != "none"):
            defended = {r: s for r, s in own.items() if r.defence == defence}
            yield from _advise_defence(defence, trials(defended, reference, position), plain)


def _advise_defence(
    defence: str, defended: Sequence[Trial], plain: Sequence[Trial]
) -> Iterator[str]:
    bases = {trial.run.base_group for trial in defended}
    same = [trial for trial in plain if trial.run.group in bases]
    if not same:
        return
    last = max(same, key=lambda trial: trial.step)
    final = [trial for trial in defended if trial.step == last.step]
    best = best_defence(final, last)
    yield f"  without a defence: {last}"
    yield from (f"  {trial}" for trial in final)
    yield f"  {defence} to keep: {best or 'none, all cost too much'}"
