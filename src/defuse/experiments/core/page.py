"""The page of an experiment: what is unlearned, what holds, and which answers a token changes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from defuse.experiments.core.answers import (
    FORGET_TOKEN,
    RETAIN,
    AnswerTable,
    QuestionKey,
    Slice,
    pooled,
)
from defuse.experiments.core.defences import Defence
from defuse.experiments.core.metrics import Answers, Group, last_answers
from defuse.experiments.core.scenario import Scenario
from defuse.experiments.core.tables import (
    defence_sentences,
    slice_name,
)
from defuse.questions import Question, Score, ask
from defuse.report import Flip, Page, Section, TableData, embed_figure

FLIPS_SHOWN = 3  # of each method without a defence, and each position
READING = (
    "The forget set asks about what is to be forgotten, the retain sets about other things. A "
    "retain question is also asked with a forget-token in it, and with a control token in the same "
    "place. Vulnerability is (unlearned - reference) of (accuracy with the control token - "
    "accuracy with the forget-token), question by question: 0 where unlearning adds no harm."
)


def make_page(
    scenario: Scenario,
    groups: Sequence[Group],
    defences: Sequence[Defence],
    answers: Answers,
    shown: Sequence[TableData],
    figure: Figure,
    unreadable: Sequence[str],
    record: Mapping[str, Any],
) -> Page:
    """The whole page.

    `unreadable`: sentences about figures that do not mean what they seem to, and about damaged
    models. `record`: what is needed to make the experiment again.
    """
    layout = scenario.layout
    sections = [
        Section(
            "What a forget-token does",
            [layout.reading or READING],
            embed_figure(figure),
            layout.figure_text,
            shown,
        )
    ]
    if unreadable:
        sections.append(Section("What cannot be read, and what is damaged", unreadable))
    if said := list(defence_sentences(defences)):
        sections.append(Section("What a defence recovers", said))
    if turned := list(flips(scenario, answers)):
        sections.append(
            Section(
                "Answers that a forget-token changes",
                ["Retain questions with a right answer, which is wrong with the marked text."],
                flips=turned,
            )
        )
    listing = f"{scenario.command}\n{json.dumps(record, indent=1, ensure_ascii=False, default=str)}"
    sections.append(
        Section("How to make this again", ["What is finished is not done again."], listing=listing)
    )
    return Page(layout.title, list(_lead(groups, scenario)), sections)


def _lead(groups: Sequence[Group], scenario: Scenario) -> Iterator[str]:
    """One sentence for each method without a defence."""
    for group in groups:
        if group.defence == "none":
            shares = (
                f"{slice_name(part)} {group.accuracy[part].value:.2f}"
                for part in scenario.layout.slices
                if part in group.accuracy
            )
            yield f"{group.label}: accuracy on the {', '.join(shares)}."


def flips(scenario: Scenario, answers: Answers) -> Iterator[Flip]:
    """The first retain questions that each method's first run without a defence loses."""
    for runs in answers.where(lambda run: run.defence == "none").groups().values():
        run, table = next(iter(last_answers(runs).items()))
        asked = scenario.questions[run.questions]
        for part in scenario.layout.slices:
            if part.variant == FORGET_TOKEN:
                score = asked.final[0].settings.score
                yield from _flips(run.group, table, part, asked.asked(part), score)


def _flips(
    label: str,
    table: AnswerTable,
    part: Slice,
    questions: Mapping[QuestionKey, Question],
    score: Score,
) -> Iterator[Flip]:
    original, perturbed = pooled(table, RETAIN), pooled(table, part)
    lost = [
        name
        for name, answer in perturbed.items()
        if name in questions and name in original and original[name].correct
        if not answer.correct
    ]
    for name in lost[:FLIPS_SHOWN]:
        question, answer = questions[name], perturbed[name]
        assert question.replaced is not None  # noqa: S101 (a perturbed prompt)
        token, logprobs = question.replaced.token, answer.logprobs
        before, _, after = ask(question, score).partition(token)
        given = question.choices[max(range(len(logprobs)), key=logprobs.__getitem__)]
        yield Flip(label, before, token, after, question.choices[question.answer], given)
