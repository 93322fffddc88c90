"""One rule for choosing settings, from answers to tuning questions that no report uses.

The rule looks at what is forgotten and what is lost, never at the harm of a forget-token. Of the
defences that cost no more than none, the one that holds best after a forget-token is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from defuse.experiments.core.answers import FORGET, FORGET_TOKEN, RETAIN, AnswerTable, Slice
from defuse.experiments.core.metrics import TOLERANCE, Finished, chance, make_means
from defuse.experiments.core.scenario import Run
from defuse.experiments.core.tables import counted
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


def trials(finished: Finished, reference: AnswerTable, position: str | None) -> list[Trial]:
    """Every checkpoint, the cheapest first; of equals the one with fewer steps."""
    after = Slice("retain", FORGET_TOKEN, position)
    means, guess = (
        make_means(finished, reference, (FORGET, RETAIN, after)),
        chance(reference, FORGET),
    )

    def trial(run: Run, step: int) -> Trial:
        own = means.of[run, step]
        left, lost = own[FORGET] - guess, means.reference[RETAIN] - own[RETAIN]
        cost = max(0.0, left) + max(0.0, lost)
        return Trial(run, step, own[FORGET], own[RETAIN], own.get(after), cost)

    return sorted((trial(*place) for place in means.of), key=lambda each: (each.cost, each.step))


def settings_table(finished: Finished, reference: AnswerTable, parts: Sequence[Slice]) -> TableData:
    """Each run without a defence at its cheapest checkpoint: accuracies on `parts`."""
    plain = {run: steps for run, steps in finished.items() if run.defence == "none"}
    means = make_means(plain, reference, parts)
    rows = []
    for run, steps in plain.items():
        best = trials({run: steps}, reference, None)[0].step
        shares = (f"{share:.2f}" for share in means.of[run, best].values())
        rows.append([" ".join([run.method, run.retain_loss, *run.settings]), str(best), *shares])
    head = ["setting", "step", *counted(means)]
    return TableData("Every setting without a defence at its cheapest checkpoint", head, rows)


def best_defence(defended: Sequence[Trial], plain: Trial) -> Trial | None:
    """The defence that holds best after a forget-token at about the cost of none."""
    cheap = [each for each in defended if each.cost <= plain.cost + TOLERANCE]
    return max(cheap, key=lambda each: each.after_forget_token or 0.0, default=None)


def advice(finished: Finished, reference: AnswerTable, position: str | None) -> Iterator[str]:
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
