"""One rule for choosing settings, from answers to tuning questions that no report uses.

The rule looks at what is forgotten and what is lost, never at the harm of a forget-token. Of the
defences that cost no more than none, the one that holds best after a forget-token is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from defuse.experiments.core.answers import FORGET, FORGET_TOKEN, RETAIN, Slice
from defuse.experiments.core.defences import TOLERANCE
from defuse.experiments.core.metrics import Answers, chance, make_means
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


def trials(answers: Answers, position: str | None) -> list[Trial]:
    """Every checkpoint, the cheapest first; of equals the one with fewer steps."""
    after = Slice("retain", FORGET_TOKEN, position)
    means, guess = make_means(answers, (FORGET, RETAIN, after)), chance(answers.reference, FORGET)

    def trial(run: Run, step: int) -> Trial:
        own = means.of[run, step]
        left, lost = own[FORGET] - guess, means.reference[RETAIN] - own[RETAIN]
        cost = max(0.0, left) + max(0.0, lost)
        return Trial(run, step, own[FORGET], own[RETAIN], own.get(after), cost)

    return sorted((trial(*place) for place in means.of), key=lambda each: (each.cost, each.step))


def settings_table(answers: Answers, parts: Sequence[Slice]) -> TableData:
    """Each run without a defence at its cheapest checkpoint: accuracies on `parts`."""
    plain = answers.where(lambda run: run.defence == "none")
    means, rows = make_means(plain, parts), []
    for run in plain.finished:
        best = trials(plain.where(lambda other, run=run: other == run), None)[0].step
        shares = (f"{share:.2f}" for share in means.of[run, best].values())
        rows.append([" ".join([run.method, run.retain_loss, *run.settings]), str(best), *shares])
    head = ["setting", "step", *counted(means)]
    return TableData("Every setting without a defence at its cheapest checkpoint", head, rows)


def best_defence(defended: Sequence[Trial], plain: Trial) -> Trial | None:
    """The defence that holds best after a forget-token at about the cost of none."""
    cheap = [each for each in defended if each.cost <= plain.cost + TOLERANCE]
    return max(cheap, key=lambda each: each.after_forget_token or 0.0, default=None)


def advice(answers: Answers, position: str | None) -> Iterator[str]:
    """For each method its cheapest trials, and for each defence the setting to keep.

    Defences are compared at the last step of the run without one that has the same settings.
    """
    kinds = dict.fromkeys(_kind(run) for run in answers.finished)
    ranked = {
        kind: trials(answers.where(lambda run, kind=kind: _kind(run) == kind), position)
        for kind in kinds
    }
    for pair in dict.fromkeys(kind[:2] for kind in ranked):
        plain = ranked.get((*pair, "none"), [])
        yield " / ".join(pair)
        yield from (f"  {trial}" for trial in plain[:ADVISED])
        for kind, defended in ranked.items():
            if kind[:2] == pair and kind[2] != "none":
                yield from _advise_defence(kind[2], defended, plain)


def _kind(run: Run) -> tuple[str, str, str]:
    return run.method, run.retain_loss, run.defence


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
