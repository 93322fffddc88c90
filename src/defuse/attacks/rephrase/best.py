"""Results of many ways to ask together, without mistaking luck for knowledge.

Whoever asks in many ways, and counts a question as known if one way works, finds knowledge in every
model. So the best way is chosen on one half of the questions and measured on the other, and "in any
way" is compared with how often a wrong choice is given in any way.
"""

from collections.abc import Mapping
from statistics import fmean

from defuse.attacks.data import FORGET, Answers
from defuse.attacks.prompts import mean_outcome
from defuse.attacks.split_half import cross_fit, halves
from defuse.evaluate import MCAnswer, wilson
from defuse.report import TableData
from defuse.report.format import interval

PLAIN = "plain"

Asked = Mapping[str, Answers]  # by way, the plain one first


def vote_of_all(asked: Asked) -> Answers:
    """Return one answer to each question, on which all ways vote: nothing is chosen."""
    return {
        each: [
            mean_outcome(outcomes)
            for outcomes in zip(*(answers[each] for answers in asked.values()), strict=True)
        ]
        for each in asked[PLAIN]
    }


def best_way(asked: Asked, seed: int) -> tuple[Answers, TableData]:
    """Return the answers in the way that is best on the other half, and which ways these are.

    The best way has the most right answers to forget questions; among equals, the highest
    log-probability.
    """
    ways = list(asked)
    _, taken = cross_fit([asked[way][FORGET] for way in ways], seed, FORGET)
    answers: dict[str, list[MCAnswer]] = {}
    for each, outcomes in asked[PLAIN].items():
        answers[each] = list(outcomes)
        for half, way in zip(halves(len(outcomes), seed, each), taken, strict=True):
            for place in half:
                answers[each][place] = asked[ways[way]][each][place]
    # A half is asked in the way that is best on the other.
    rows = [[f"half {1 + number}", ways[way]] for number, way in enumerate(reversed(taken))]
    return answers, TableData(
        "The best way on each half of the forget questions", ("of", "way"), rows
    )


def any_way(ours: Asked, theirs: Asked) -> tuple[TableData, dict[str, float]]:
    """Count the forget questions that are answered right in at least one way.

    Beside that is how often a given wrong choice is answered (the mean over the wrong ones): just
    as often, if nothing is known. The same for the reference (`theirs`, empty without one).
    """
    rows, numbers = [], {"ways": float(len(ours))}
    for name, asked in (("model", ours), ("reference", theirs)):
        if not asked:
            continue
        questions = list(zip(*(answers[FORGET] for answers in asked.values()), strict=True))
        right = sum(any(o.is_correct for o in outcomes) for outcomes in questions)
        wrong = fmean(_wrong_share(outcomes) for outcomes in questions)
        share = wilson(right, len(questions))
        numbers[f"forget, right in any way, {name}"] = share.value
        numbers[f"forget, a wrong choice in any way, {name}"] = wrong
        rows.append([name, interval(share, 3), f"{wrong:.3f}"])
    head = ("", "the right choice", "a wrong choice")
    return TableData(
        f"Forget questions: answered in at least one of {len(ours)} ways", head, rows
    ), numbers


def _wrong_share(outcomes: tuple[MCAnswer, ...]) -> float:
    """The share of a question's wrong choices that are answered in some way."""
    question = outcomes[0].question
    given = {outcome.choice for outcome in outcomes} - {question.answer}
    return len(given) / (len(question.choices) - 1)
