"""Results of an attack: effects with intervals and tests, examples, curves and tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from defuse.attacks.data import Answers
from defuse.attacks.findings import Cost
from defuse.evaluate import Interval, MCAnswer, Paired, bootstrap_mean, compare, wilson
from defuse.questions import Score, ask
from defuse.report import TableData

EXAMPLES = 5


@dataclass(frozen=True)
class Figures:
    """Answers to n questions: `right` by question id, and their share with Wilson's interval.

    `logprob`: mean log-probability of the right answer among the choices (nats, bootstrapped).
    """

    n: int
    accuracy: Interval
    logprob: Interval
    right: Mapping[str, bool]


@dataclass(frozen=True)
class Effect:
    """The same questions before and after; `accuracy` and `logprob` are after minus before."""

    before: Figures
    after: Figures
    accuracy: Paired
    logprob: Interval


@dataclass(frozen=True)
class Condition:
    """One setting of an attack: its effect on each question set, and further numbers.

    `headline`: it stands in tables of several models; nothing about it was chosen on the questions
    that it is reported on. `is_control`: what is changed is random (directions, units, suffixes,
    words), for comparison.
    """

    name: str
    effects: Mapping[str, Effect]
    numbers: Mapping[str, float] = field(default_factory=dict)
    headline: bool = True
    is_control: bool = False


@dataclass(frozen=True)
class Example:
    """An answer that the attack changed: the prompts before and after, and the choices' texts."""

    condition: str
    questions: str  # the set
    id: str
    asked_before: str
    asked_after: str
    right: str
    before: str
    after: str


@dataclass(frozen=True)
class Line:
    """A line of a figure: x, and y with its interval."""

    name: str
    x: Sequence[float]
    y: Sequence[Interval]


@dataclass(frozen=True)
class Curves:
    """The lines of one figure, with the titles of its axes."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False


@dataclass(frozen=True)
class Result:
    """Everything that one attack found. `settings`: its config, as JSON holds it."""

    attack: str
    settings: Mapping[str, Any]
    conditions: Sequence[Condition]
    cost: Cost
    examples: Sequence[Example] = ()
    curves: Sequence[Curves] = ()
    tables: Sequence[TableData] = ()

    def as_json(self) -> dict[str, Any]:
        """The whole result as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Result":
        """Read what `as_json` returned. Raises ValueError for anything else."""
        return TypeAdapter(cls).validate_python(value)


def accuracy(outcomes: Sequence[MCAnswer]) -> Interval:
    """The share of right answers, with Wilson's interval."""
    return wilson(sum(outcome.is_correct for outcome in outcomes), len(outcomes))


def figures(outcomes: Sequence[MCAnswer], seed: int) -> Figures:
    """Accuracy and log-probability of a list of answers."""
    right = {outcome.question.id: outcome.is_correct for outcome in outcomes}
    logprobs = [outcome.answer_logprob for outcome in outcomes]
    return Figures(len(right), accuracy(outcomes), bootstrap_mean(logprobs, seed), right)


def effect(before: Sequence[MCAnswer], after: Sequence[MCAnswer], seed: int) -> Effect:
    """Compare answers to the same questions in the same order."""
    pairs = list(zip(before, after, strict=True))
    assert all(a.question.id == b.question.id for a, b in pairs)  # noqa: S101
    changes = [b.answer_logprob - a.answer_logprob for a, b in pairs]
    right = [[outcome.is_correct for outcome in outcomes] for outcomes in (after, before)]
    return Effect(
        figures(before, seed),
        figures(after, seed),
        compare(*right),
        bootstrap_mean(changes, seed),
    )


def condition(
    name: str,
    before: Answers,
    after: Answers,
    seed: int,
    numbers: Mapping[str, float] | None = None,
    *,
    headline: bool = True,
    is_control: bool = False,
) -> Condition:
    """The effect on every question set that `after` has answers to."""
    effects = {each: effect(before[each], outcomes, seed) for each, outcomes in after.items()}
    return Condition(name, effects, numbers or {}, headline, is_control)


def examples(
    name: str, before: Answers, after: Answers, score: Score = "letters"
) -> Iterator[Example]:
    """Yield the first answers of each set that became right or became wrong."""
    for each, outcomes in after.items():
        changed = [
            (a, b)
            for a, b in zip(before[each], outcomes, strict=True)
            if a.is_correct != b.is_correct
        ]
        for a, b in changed[:EXAMPLES]:
            question = a.question
            yield Example(
                name,
                each,
                question.id,
                ask(question, score),
                ask(b.question, score),
                question.choices[question.answer],
                question.choices[a.choice],
                b.question.choices[b.choice],
            )
