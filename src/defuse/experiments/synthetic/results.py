"""The lab's results as data: a row for every checkpoint and form, and the summary."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from defuse.experiments.core.answers import CLEAN, FORGET, Answers, Sheet
from defuse.experiments.core.metrics import LOGPROB, RIGHT
from defuse.experiments.synthetic.compare import Defence, Finished, Group


def rows(finished: Finished, base: Answers, gold: Answers) -> Iterator[dict[str, Any]]:
    """One row a checkpoint and form.

    `noise_std` counts in the hidden states' own standard deviations per unit at the noised layer.
    """
    for name, answers in (("base", base), ("gold", gold)):
        about = {"model": name, "retain_loss": None, "noise_std": None, "mixed": None}
        yield from _rows({**about, "seed": 0, "step": 0}, answers)
    for run, steps in finished.items():
        noise = None if run.noise is None else float(run.noise.removesuffix("x"))
        about = {"model": run.method, "retain_loss": run.retain, "noise_std": noise}
        for step, answers in steps.items():
            yield from _rows({**about, "mixed": run.mix, "seed": run.seed, "step": step}, answers)


def _rows(about: dict[str, Any], answers: Answers) -> Iterator[dict[str, Any]]:
    for form, sheet in answers.items():
        yield about | _place(form) | _figures(sheet)


def _place(form: str) -> dict[str, str | None]:
    if form in (FORGET, CLEAN):
        which = "forget" if form == FORGET else "retain"
        return {"set": which, "trigger": "none", "position": None}
    position, _, trigger = form.partition("/")
    return {"set": "retain", "trigger": trigger, "position": position}


def _figures(sheet: Sheet) -> dict[str, Any]:
    logprobs = [answer[LOGPROB] for answer in sheet.values()]
    return {
        "n": len(sheet),
        "correct": sum(bool(answer[RIGHT]) for answer in sheet.values()),
        "logprob": round(sum(logprobs) / len(logprobs), 6),
    }


def summary(groups: Sequence[Group], defences: Sequence[Defence]) -> dict[str, Any]:
    """All intervals, as `results.json` holds them."""
    return {
        "groups": [asdict(group) for group in groups],
        "defences": [asdict(defence) for defence in defences],
    }
