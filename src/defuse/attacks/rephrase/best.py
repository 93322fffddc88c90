"""What many ways of asking find together, without taking luck for a find.

Whoever asks in many ways and counts a question as known if one of them works finds something in
every model. So the best way is chosen on one half of the questions and measured on the other, and
"in any way" is set beside how often a wrong choice is given in any way.
"""

from collections.abc import Mapping

from defuse.attacks.data import FORGET, Answers
from defuse.attacks.prompts import mean_outcome
from defuse.attacks.split_half import crosswise, halves
from defuse.evaluate import MCAnswer, wilson
from defuse.report import TableData
from defuse.report.format import interval

PLAIN = "plain"

Asked = Mapping[str, Answers]  # by way, the plain one first


def vote_of_all(asked: Asked) -> Answers:
    """One answer to each question, which all ways vote on: nothing is chosen."""
    return {
        each: [
            mean_outcome(outcomes)
            for outcomes in zip(*(answers[each] for answers in asked.values()), strict=True)
        ]
        for each in asked[PLAIN]
    }


def best_way(asked: Asked, seed: int) -> tuple[Answers, TableData]:
    """Every question in the way that answers most of the other half's forget questions rightly
    (of equals, with the higher log-probability); and which ways these are."""
    ways = list(asked)
    _, taken = crosswise([asked[way][FORGET] for way in ways], seed, FORGET)
    answers: dict[str, list[MCAnswer]] = {}
    for each, outcomes in asked[PLAIN].items():
        answers[each] = list(outcomes)
        for half, way in zip(halves(len(outcomes), seed, each), taken, strict=True):
            for place in half:
                answers[each][place] = asked[ways[way]][each][place]
    # A half is asked in the way that was best on the other.
    rows = [[f"half {1 + number}", ways[way]] for number, way in enumerate(reversed(taken))]
    return answers, TableData(
        "The best way on each half of the forget questions", ("of", "way"), rows
    )


def any_way(ours: Asked, theirs: Asked) -> tuple[TableData, dict[str, float]]:
    """How many forget questions are answered rightly in at least one way.

    Beside it how often a given wrong choice is (the mean of the three), which is as often where
    nothing is known; and the same of the reference (`theirs`, empty without one).
    """
    rows, numbers = [], {"ways": float(len(ours))}
    for name, asked in (("model", ours), ("reference", theirs)):
        if not asked:
            continue
        questions = list(zip(*(answers[FORGET] for answers in asked.values()), strict=True))
        right = sum(any(o.is_correct for o in outcomes) for outcomes in questions)
        wrong = sum(len({o.choice for o in outcomes} - {outcomes[0].question.answer})
                    for outcomes in questions) / 3  # fmt: skip
        share = wilson(right, len(questions))
        numbers[f"forget, right in any way, {name}"] = share.value
        numbers[f"forget, a wrong choice in any way, {name}"] = wrong / len(questions)
        rows.append([name, interval(share, 3), f"{wrong / len(questions):.3f}"])
    head = ("", "the right choice", "a wrong choice")
    return TableData(
        f"Forget questions: given in at least one of {len(ours)} ways", head, rows
    ), numbers
