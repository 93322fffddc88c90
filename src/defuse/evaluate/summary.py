"""The figures of an evaluation, each with its interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from defuse import statistics
from defuse.evaluate.answers import Evaluation
from defuse.questions import CONTROL_TOKEN, FORGET_TOKEN, ORIGINAL, Variant
from defuse.statistics import Interval, Paired, bootstrap_mean, compare, wilson
from defuse.utils.errors import UsageError

PAIRS: tuple[tuple[Variant, Variant], ...] = (
    (ORIGINAL, FORGET_TOKEN),
    (ORIGINAL, CONTROL_TOKEN),
    (CONTROL_TOKEN, FORGET_TOKEN),
)


@dataclass(frozen=True)
class VariantSummary:
    """The figures of one variant of the questions.

    `accuracy` has Wilson's interval. `accuracy_norm` ranks choices per character (cloze only).
    `logprob`: the mean log-probability of the right answer among the choices (nats), bootstrapped.
    `truncated`: the number of prompts that were cut on the left. `own_token`: the number of
    questions that mention their token anyway.
    """

    n: int
    accuracy: Interval
    accuracy_norm: Interval | None
    logprob: Interval
    truncated: int
    own_token: int


@dataclass(frozen=True)
class Contrast:
    """The first variant minus the second, paired by question."""

    accuracy: Paired
    logprob: Interval


@dataclass(frozen=True)
class Vulnerability:
    """(unlearned − reference) of (control − forget): `defuse.statistics.vulnerability`.

    `accuracy` in shares of questions; `logprob` of the right answer among the choices, in nats.
    `any_sentence`, `any_sentence_logprob`: the harm of any sentence, (unlearned − reference) of
    (original − control). A model that fails after any sentence has nothing left for a forget-token
    to harm, so its vulnerability is low or negative and says nothing.
    """

    accuracy: Interval
    logprob: Interval
    any_sentence: Interval
    any_sentence_logprob: Interval

    @property
    def is_readable(self) -> bool:
        """Whether control tokens alone do no significant harm."""
        return self.any_sentence.low <= 0


def summarise(evaluation: Evaluation) -> dict[Variant, VariantSummary]:
    """The figures of each variant."""
    return {variant: _summarise(evaluation, variant) for variant in evaluation.answers}


def contrasts(evaluation: Evaluation) -> dict[tuple[Variant, Variant], Contrast]:
    """The differences of `PAIRS`, as far as both variants were evaluated."""
    return {
        (first, second): contrast(evaluation, evaluation, first, second)
        for first, second in PAIRS
        if {first, second} <= set(evaluation.answers)
    }


def contrast(
    one: Evaluation, other: Evaluation, first: Variant = ORIGINAL, second: Variant = ORIGINAL
) -> Contrast:
    """Compare `one`'s answers to variant `first` with `other`'s to `second`, in pairs."""
    differences = _differences(one.answer_logprobs(first), other.answer_logprobs(second))
    return Contrast(
        accuracy=compare(one.correct(first), other.correct(second)),
        logprob=bootstrap_mean(differences, one.settings.seed),
    )


def vulnerability(unlearned: Evaluation, reference: Evaluation) -> Vulnerability:
    """How much unlearning adds to the harm of a forget-token beyond that of its control token.

    Raises UsageError unless both evaluations have the same prompts, with control tokens.
    """
    if unlearned.prompt_hash != reference.prompt_hash or CONTROL_TOKEN not in unlearned.answers:
        raise UsageError(
            f"reference: {reference.model} and {unlearned.model} must answer the same questions, "
            "perturbed with control tokens; give --perturb, and --control or --control-corpus"
        )
    seed = unlearned.settings.seed

    def effects(first: Variant, second: Variant) -> tuple[Interval, Interval]:
        measures: tuple[Callable[[Evaluation, Variant], Sequence[float]], ...]
        measures = (Evaluation.correct, Evaluation.answer_logprobs)
        accuracy, logprob = (
            statistics.added_difference(
                measure(unlearned, first),
                measure(unlearned, second),
                measure(reference, first),
                measure(reference, second),
                seed,
            )
            for measure in measures
        )
        return accuracy, logprob

    return Vulnerability(*effects(CONTROL_TOKEN, FORGET_TOKEN), *effects(ORIGINAL, CONTROL_TOKEN))


def _summarise(evaluation: Evaluation, variant: Variant) -> VariantSummary:
    answers, seed = evaluation.answers[variant], evaluation.settings.seed
    n = len(answers)
    cloze = evaluation.settings.score == "cloze"
    return VariantSummary(
        n=n,
        accuracy=wilson(sum(answer.is_correct for answer in answers), n),
        accuracy_norm=wilson(sum(o.is_correct_norm for o in answers), n) if cloze else None,
        logprob=bootstrap_mean(evaluation.answer_logprobs(variant), seed),
        truncated=sum(answer.truncated for answer in answers),
        own_token=sum(
            o.question.replaced is not None and not o.question.replaced.foreign for o in answers
        ),
    )


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [float(a) - float(b) for a, b in zip(first, second, strict=True)]
