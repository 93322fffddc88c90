"""The lab's table, on the screen and as Markdown, and its comparisons in words."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from defuse.evaluate import Interval
from defuse.experiment.answers import CLEAN, FORGET
from defuse.experiment.words import interval, sentence, stacked
from defuse.lab.compare import Defence, Group
from defuse.lab.exam import POSITIONS, TRIGGERS

SCREEN = (FORGET, CLEAN, "before/forget", "before/control", "statement/forget", "statement/control")


def screen_table(groups: Sequence[Group]) -> Table:
    """What fits a terminal: accuracies, and the vulnerability to a name and to a statement."""
    heads = ("forget\nset", "retain\nset", "... after\na name", "...\ncontrol")
    heads += ("after a\nstatement", "...\ncontrol", "vulner-\nability", "...state-\nment")
    table = Table("accuracy", *heads, title="with 95 % intervals; chance 0.25", box=SIMPLE_HEAD)
    for group in groups:
        effects = [_effect(group, position) for position in ("before", "statement")]
        values = [*(group.accuracy.get(form) for form in SCREEN), *effects]
        table.add_row(group.label.replace("-", "\n", 1), *map(stacked, values))
    return table


def _effect(group: Group, position: str) -> Interval | None:
    return group.vulnerability[position][0] if group.vulnerability else None


def markdown(groups: Sequence[Group]) -> str:
    """Three tables: accuracies, triggers by place, and vulnerabilities with the gold standard."""
    forms = [f"{p}/{t}" for p in POSITIONS for t in TRIGGERS if (p, t) != ("statement", "unseen")]
    effects = [[group.vulnerability.get(p, (None, None)) for p in POSITIONS] for group in groups]
    parts = (
        (
            ["", "runs", "forget acc.", "retain acc.", "KL to gold, forget", "KL to gold, retain"],
            [
                [
                    g.label,
                    str(g.runs),
                    *(interval(g.accuracy[f]) for f in (FORGET, CLEAN)),
                    *(interval(g.kl_to_gold[f]) for f in (FORGET, CLEAN)),
                ]
                for g in groups
            ],
        ),
        (
            ["accuracy of retain questions", *forms],
            [[g.label, *(f"{g.accuracy[f].value:.2f}" for f in forms)] for g in groups],
        ),
        (
            ["vulnerability", *POSITIONS, *(f"{p}, nats" for p in POSITIONS)],
            [
                [g.label, *(interval(e[i]) for i in (0, 1) for e in row)]
                for g, row in zip(groups, effects, strict=True)
                if g.vulnerability
            ],
        ),
    )
    return "\n".join(_markdown(head, lines) for head, lines in parts)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


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
