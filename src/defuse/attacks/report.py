"""The page about all attacks on one model: `defuse.report` draws and escapes it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import fill

from matplotlib.figure import Figure

from defuse.attacks.results import Curves, Example, Result
from defuse.attacks.tables import cost_sentence, effects_table
from defuse.report import Page, Quote, Section, TableData, embed_figure

SHOWN = 12  # examples of each kind
READING = (
    "Each row asks the same questions before and after; the change has Newcombe's paired interval "
    "and McNemar's exact p. Nats: the right answer's mean log-probability among the four. Rows "
    "are not corrected for their number: of twenty, one differs at p = 0.05 by chance."
)


def make_page(model: str, results: Mapping[str, Result]) -> Page:
    """One section for each kind of attack."""
    sections = [_section(result) for result in results.values()]
    return Page(f"Attacks on {model}", [READING], sections)


def _section(result: Result) -> Section:
    settings = ", ".join(f"{name} = {value}" for name, value in result.settings.items())
    return Section(
        result.kind,
        [f"Settings: {settings}.", cost_sentence(result.cost)],
        embed_figure(draw(result.curves)) if result.curves else None,
        "; ".join(curves.title for curves in result.curves),
        [TableData("What it did", *effects_table(result)), *result.tables],
        quotes=[_quote(each) for each in in_turn(result.examples)[:SHOWN]],
    )


def in_turn(examples: Sequence[Example]) -> list[Example]:
    """One of each condition, then the next of each; random controls last."""
    seen: Counter[str] = Counter()
    ranked = []
    for each in examples:
        ranked.append(("random" in each.condition, seen[each.condition], each))
        seen[each.condition] += 1
    return [each for *_, each in sorted(ranked, key=lambda row: row[:2])]


def _quote(example: Example) -> Quote:
    return Quote(
        example.asked_after,
        f"{example.condition}, {example.questions}, {example.id}: answered {example.after!r}, "
        f"before the attack {example.before!r}; right is {example.right!r}.",
    )


def draw(curves: Sequence[Curves]) -> Figure:
    """All curves side by side, three in a row, with intervals as bands."""
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    for place, each in enumerate(curves, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for line in each.lines:
            y = [value.value for value in line.y]
            axes.plot(line.x, y, marker="o", markersize=3, label=line.name)
            axes.fill_between(
                line.x,
                [value.low for value in line.y],
                [value.high for value in line.y],
                alpha=0.15,
            )
        if each.log_x:
            axes.set_xscale("symlog", linthresh=1)
        axes.set(title=fill(each.title, 45), xlabel=each.x, ylabel=each.y)
        axes.legend(fontsize="small")
    return figure
