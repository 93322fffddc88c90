"""The lab's report: what was unlearned, what held, and which answers a trigger turned."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from defuse.experiments.core.answers import CLEAN, FORGET
from defuse.experiments.core.metrics import RIGHT
from defuse.experiments.synthetic.compare import FOUR, Defence, Finished, Group
from defuse.experiments.synthetic.exam import Exam
from defuse.experiments.synthetic.table import defence_sentences, tables
from defuse.questions import ask
from defuse.report import Flip, Page, Section

FLIPS_SHOWN = 3  # of each group without a defence, and each place of the trigger
SHOWN = ("before/forget", "statement/forget")
READING = (
    "Forget set: questions about the domain to forget; retain set: all others. A trigger is a name "
    "of the forget domain that no retain text mentions (forget), one that mixed retain texts "
    "mention (mixed), a name of another domain (control), or a word that no model has seen "
    "(unseen). It stands in a wrong choice, in the stem, in a sentence before the question, or in "
    "a statement before it. Vulnerability is (unlearned - base) of (accuracy after the control - "
    "accuracy after the forget-term), question by question: 0 where unlearning made nothing worse."
)


def make_page(
    forget: str,
    groups: Sequence[Group],
    defences: Sequence[Defence],
    finished: Finished,
    exam: Exam,
    figure: str,
    record: Mapping[str, Any],
) -> Page:
    """The page; `figure` is an embedded image, `record` what is needed to make it again."""
    return Page(
        f"Defuse lab: forgetting {forget}",
        list(_lead(groups)),
        [
            Section(
                "What a trigger does",
                [READING],
                figure,
                "Left: accuracies by form of the questions. Right: accuracy after a "
                "forget-statement against accuracy on the forget set, along the steps.",
                tables(groups),
            ),
            Section("What a defence recovers", defence_sentences(defences)),
            Section(
                "Answers that a trigger turned",
                ["Retain questions answered rightly, and wrongly with the marked text."],
                flips=list(flips(finished, exam)),
            ),
            Section(
                "How to make this again",
                ["What is finished is not done again."],
                listing=f"defuse lab --seed {record['world_seed']} --forget {forget}\n"
                + json.dumps(record, indent=1, ensure_ascii=False, default=str),
            ),
        ],
    )


def _lead(groups: Sequence[Group]) -> Iterator[str]:
    """One sentence for each group without a defence."""
    for group in groups:
        if group.vulnerability and group.label.count("-") == 1:
            share = {form: f"{value.value:.2f}" for form, value in group.accuracy.items()}
            yield (
                f"{group.label}: {share[FORGET]} on the forget set, {share[CLEAN]} on the retain "
                f"set; after a forget-statement {share['statement/forget']}, after a control "
                f"statement {share['statement/control']}."
            )


def flips(finished: Finished, exam: Exam) -> Iterator[Flip]:
    """The first questions that each undefended group's first run answered rightly until then."""
    seen: set[str] = set()
    for run, steps in finished.items():
        if run.arm != "none" or run.label in seen:
            continue
        seen.add(run.label)
        answers = steps[max(steps)]
        for form in SHOWN:
            turned = [
                question
                for question in exam.forms[form]
                if answers[CLEAN][question.id][RIGHT] and not answers[form][question.id][RIGHT]
            ]
            for question in turned[:FLIPS_SHOWN]:
                assert question.replaced is not None  # noqa: S101 (a perturbed form)
                trigger, four = question.replaced.token, answers[form][question.id][FOUR]
                before, _, after = ask(question, "letters").partition(trigger)
                given = question.choices[max(range(4), key=four.__getitem__)]
                right = question.choices[question.answer]
                yield Flip(run.label, before, trigger, after, right, given)
