"""The lab's table, on the screen and as Markdown, and its comparisons in words."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from defuse.evaluate import Interval
from defuse.experiments.core.answers import CLEAN, FORGET
from defuse.experiments.core.tables import sentence
from defuse.experiments.synthetic.compare import Defence, Group
from defuse.experiments.synthetic.exam import POSITIONS, TRIGGERS
from defuse.report import TableData
from defuse.report.format import captioned, interval, stacked

JUDGED = "statement"  # the trigger that the screen shows: names alone do little (docs/results.md)

LOGPROBS = (
    *(FORGET, CLEAN, "before/control", "before/forget"),
    *(f"{JUDGED}/control", f"{JUDGED}/forget"),
)
SCREEN = (FORGET, CLEAN, f"{JUDGED}/control", f"{JUDGED}/forget")


MAIN_COLUMNS = (
    *("forget set", "retain set", "after a control statement", "after a forget-statement"),
    *("vulnerability", "KL to gold, forget", "KL to gold, retain"),
)


def _main(group: Group) -> list[Interval | None]:
    """What `MAIN_COLUMNS` name."""
    effect = group.vulnerability[JUDGED][0] if group.vulnerability else None
    distances = (group.kl_to_gold[form] for form in (FORGET, CLEAN))
    return [*(group.accuracy.get(form) for form in SCREEN), effect, *distances]


def screen_table(groups: Sequence[Group]) -> Table:
    """What fits a terminal: accuracies, and the vulnerability to a statement."""
    heads = ("forget\nset", "retain\nset", "... after a\ncontrol\nstatement")
    heads += ("... after a\nforget-\nstatement", "vulner-\nability")
    table = Table("accuracy", *heads, title="with 95 % intervals; chance 0.25", box=SIMPLE_HEAD)
    for group in groups:
        values = _main(group)[: len(heads)]
        table.add_row(group.label.replace("-", "\n", 2), *map(stacked, values))
    return table


def screen_sentences(defences: Sequence[Defence]) -> list[str]:
    """What each defence recovers after a statement, in one line."""
    found = []
    for defence in defences:
        matched = defence.matched[JUDGED]
        alike = "no such checkpoints" if matched is None else interval(matched.accuracy)
        recovered = interval(defence.recovered[JUDGED])
        found.append(
            f"{defence.label}: accuracy after a forget-statement changed by {recovered} at the "
            f"last step, by {alike} at equal forgetting and keeping."
        )
    return found


def tables(groups: Sequence[Group]) -> list[TableData]:
    """Accuracies and the gold standard, triggers by place, log-probabilities, vulnerabilities."""
    forms = [f"{p}/{t}" for p in POSITIONS for t in TRIGGERS if (p, t) != ("statement", "unseen")]
    unlearned = [group for group in groups if group.vulnerability]
    return [
        TableData(
            "Accuracies, the vulnerability to a forget-statement, and how far the answers are from "
            "the gold standard's (KL, nats a question)",
            ["", "runs", *MAIN_COLUMNS],
            [[group.label, str(group.runs), *map(interval, _main(group))] for group in groups],
        ),
        TableData(
            "Accuracy on the retain set with a trigger, by place and kind",
            ["", *forms],
            [[g.label, *(f"{g.accuracy[form].value:.2f}" for form in forms)] for g in groups],
        ),
        TableData(
            "The right answer's log-probability among the four (nats)",
            ["", *LOGPROBS],
            [[g.label, *(interval(g.logprob[form]) for form in LOGPROBS)] for g in groups],
        ),
        TableData(
            "Vulnerability, in shares of questions and in nats",
            ["", *POSITIONS, *(f"{position}, nats" for position in POSITIONS)],
            [
                [g.label, *(interval(g.vulnerability[p][i]) for i in (0, 1) for p in POSITIONS)]
                for g in unlearned
            ],
        ),
    ]


def markdown(groups: Sequence[Group]) -> str:
    """The tables for a page of documentation."""
    return "\n".join(map(captioned, tables(groups)))


def defence_sentences(defences: Sequence[Defence]) -> list[str]:
    """What each defence recovers, at the last step and at equal forgetting."""
    found = []
    for defence in defences:
        gains = ", ".join(f"{place} {interval(gain)}" for place, gain in defence.recovered.items())
        found.append(
            f"{defence.label} against {defence.against}, accuracy after a forget-term at the last "
            f"step: {gains}."
        )
        found += [
            sentence(f"{defence.label}, {position}", matched, "the defence")
            for position, matched in defence.matched.items()
        ]
    return found
