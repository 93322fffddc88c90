"""What an attack found, in figures that say how sure they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from defuse.attacks.data import Answers
from defuse.attacks.notes import Cost
from defuse.evaluate import Interval, MCAnswer, Paired, bootstrap_mean, compare, wilson
from defuse.questions import Score, ask
from defuse.report import TableData

EXAMPLES = 5


@dataclass(frozen=True)
class Figures:
    """Answers to n questions: `right`, by question's id, and the share (Wilson's interval).

    `logprob`: the right answer's mean log-probability among the four (nats, bootstrapped).
    """

    n: int
    accuracy: Interval
    logprob: Interval
    right: Mapping[str, bool]


@dataclass(frozen=True)
class Effect:
    """The same questions before and after: `accuracy` and `logprob` are after minus before."""

    before: Figures
    after: Figures
    accuracy: Paired
    logprob: Interval


@dataclass(frozen=True)
class Condition:
    """One setting of an attack: its effect on each set of questions, and further numbers."""

    name: str
    effects: Mapping[str, Effect]
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """An answer that the attack turned: what was asked before and after, and the choices' texts."""

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
    """A curve's points: x, and y with its interval."""

    name: str
    x: Sequence[float]
    y: Sequence[Interval]


@dataclass(frozen=True)
class Curves:
    """Lines in one figure."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False


@dataclass(frozen=True)
class Result:
    """All that one kind of attack found. `settings`: its config, as JSON holds it."""

    kind: str
    settings: Mapping[str, Any]
    conditions: Sequence[Condition]
    cost: Cost
    examples: Sequence[Example] = ()
    curves: Sequence[Curves] = ()
    tables: Sequence[TableData] = ()

    def as_json(self) -> dict[str, Any]:
        """The whole result as JSON values."""
        return asdict(self)


def accuracy(outcomes: Sequence[MCAnswer]) -> Interval:
    """The share that is right, with Wilson's interval."""
    return wilson(sum(outcome.is_correct for outcome in outcomes), len(outcomes))


def figures(outcomes: Sequence[MCAnswer], seed: int) -> Figures:
    """Accuracy and log-probability of one list of answers."""
    right = {outcome.question.id: outcome.is_correct for outcome in outcomes}
    logprobs = [outcome.answer_logprob for outcome in outcomes]
    return Figures(len(right), accuracy(outcomes), bootstrap_mean(logprobs, seed), right)


def effect(before: Sequence[MCAnswer], after: Sequence[MCAnswer], seed: int) -> Effect:
    """What changed, question by question; both lists are of the same questions in one order."""
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
) -> Condition:
    """The effect on every set that was asked after."""
    effects = {each: effect(before[each], outcomes, seed) for each, outcomes in after.items()}
    return Condition(name, effects, numbers or {})


def examples(
    name: str, before: Answers, after: Answers, score: Score = "letters"
) -> Iterator[Example]:
    """The first answers of each set that turned from right to wrong or from wrong to right."""
    for each, outcomes in after.items():
        turned = [
            (a, b)
            for a, b in zip(before[each], outcomes, strict=True)
            if a.is_correct != b.is_correct
        ]
        for a, b in turned[:EXAMPLES]:
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
