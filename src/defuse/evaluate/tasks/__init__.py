"""Benchmarks by name, asked and weighted as lm-evaluation-harness does."""

from collections.abc import Mapping, Sequence

from defuse.evaluate.tasks import arc, mmlu, truthfulqa, wmdp
from defuse.evaluate.tasks.load import load_parts
from defuse.evaluate.tasks.suite import Subject, Suite
from defuse.utils.errors import UsageError

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        mmlu.MMLU,
        mmlu.PERTURBED,
        *mmlu.SINGLE,
        wmdp.WMDP,
        wmdp.RETAIN,
        wmdp.PERTURBED_RETAIN,
        arc.ARC,
        truthfulqa.TRUTHFULQA,
    )
}

__all__ = ["SUITES", "Subject", "Suite", "choose_suite", "load_parts"]


def choose_suite(name: str, subjects: Sequence[str] = ()) -> Suite:
    """The suite of that name, with all its subjects or some. Raises UsageError for another name."""
    if name not in SUITES:
        single = {suite.name for suite in mmlu.SINGLE}
        names = ", ".join(known for known in SUITES if known not in single)
        raise UsageError(f"suite: {name!r} is unknown; use {names} or mmlu-SUBJECT")
    return SUITES[name].only(subjects) if subjects else SUITES[name]
