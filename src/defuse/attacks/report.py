"""Tables, figures and the report of all attacks on one model."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as ScreenTable

from defuse.attacks.data import RETAIN, AttackData
from defuse.attacks.findings import Cost
from defuse.attacks.results import Condition, Curves, Example, Result
from defuse.questions import chance
from defuse.report import Page, Quote, Section, TableData, embed_figure
from defuse.report.format import captioned, interval, markdown_table

HEAD = ("", "questions", "n", "before", "after", "change", "p", "change, nats")
EXAMPLES_SHOWN = 12  # for each attack
READING = (
    "Each row asks the same questions before and after the attack. The change has Newcombe's "
    "paired interval and McNemar's exact p. Nats: mean log-probability of the right answer among "
    "the choices. The p-values are not corrected for the number of rows: of twenty rows without "
    "any effect, one has p < 0.05 by chance."
)


def make_report(model: str, results: Mapping[str, Result], data: AttackData | None = None) -> Page:
    """A page with a section for each attack on `model`, and cautions about its questions `data`."""
    sections = [_section(result) for result in results.values()]
    return Page(f"Attacks on {model}", [READING, *cautions(results, data)], sections)


def cautions(results: Mapping[str, Result], data: AttackData | None = None) -> Iterator[str]:
    """What cannot be read: letters that are answered at chance, and attacks whose controls harm."""
    conditions = [each for result in results.values() for each in result.conditions]
    known = [each.effects[RETAIN].before for each in conditions if RETAIN in each.effects]
    if known and data is not None and data.settings.score == "letters":
        own = max(known, key=lambda figures: figures.n).accuracy
        if own.low <= chance(data.retain):
            yield (
                f"Caution: the model answers {own.value:.2f} of the retain questions, no better "
                "than chance, so nothing can break it. Small models often cannot answer with a "
                "letter; try --score cloze."
            )
    for name, result in results.items():
        harmful = [each for each in result.conditions if each.is_control and _harms(each)]
        if harmful:
            yield (
                f"{name}: what it does to the retain questions cannot be read as the attack's own, "
                f"because its controls do harm, too ({', '.join(each.name for each in harmful)})."
            )


def _harms(condition: Condition) -> bool:
    """Whether significantly fewer retain questions are answered correctly."""
    effect = condition.effects.get(RETAIN)
    return effect is not None and effect.accuracy.difference.high < 0


def _section(result: Result) -> Section:
    settings = ", ".join(f"{name} = {value}" for name, value in result.settings.items())
    return Section(
        result.attack,
        [f"Settings: {settings}.", cost_sentence(result.cost)],
        embed_figure(draw(result.curves)) if result.curves else None,
        "; ".join(curves.title for curves in result.curves),
        [TableData("Effects", *effects_table(result)), *result.tables],
        quotes=[_quote(each) for each in in_turn(result)[:EXAMPLES_SHOWN]],
    )


def in_turn(result: Result) -> list[Example]:
    """The examples: the first of each condition, then the second of each; controls come last."""
    controls = {each.name for each in result.conditions if each.is_control}
    seen: Counter[str] = Counter()
    ranked = []
    for each in result.examples:
        ranked.append((each.condition in controls, seen[each.condition], each))
        seen[each.condition] += 1
    return [each for *_, each in sorted(ranked, key=lambda row: row[:2])]


def _quote(example: Example) -> Quote:
    return Quote(
        example.asked_after,
        f"{example.condition}, {example.questions}, {example.id}: answered {example.after!r}, "
        f"before the attack {example.before!r}; right is {example.right!r}.",
    )


def effects_table(result: Result) -> tuple[Sequence[str], list[list[str]]]:
    """The head and the rows of a table: one row for each condition and question set."""
    names = list(dict.fromkeys(name for each in result.conditions for name in each.numbers))
    rows = [[*row, *numbers] for each in result.conditions for row, numbers in _rows(each, names)]
    return (*HEAD, *(name.replace("_", " ") for name in names)), rows


def _rows(
    condition: Condition, names: Sequence[str]
) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    for questions, effect in condition.effects.items():
        numbers = [_number(condition, name, questions) for name in names]
        row = (
            condition.name,
            questions,
            str(effect.before.n),
            interval(effect.before.accuracy),
            interval(effect.after.accuracy),
            interval(effect.accuracy.difference),
            f"{effect.accuracy.p_value:.2g}",
            interval(effect.logprob),
        )
        yield row, numbers


def _number(condition: Condition, name: str, questions: str) -> str:
    """A number as text; one called "forget, …" appears in the row of that set alone."""
    other = any(name.startswith(f"{each},") for each in condition.effects if each != questions)
    return "" if other or name not in condition.numbers else f"{condition.numbers[name]:.4g}"


def cost_sentence(cost: Cost) -> str:
    """What an attack took, in words."""
    return (
        f"{cost.seconds:.0f} s; {cost.forward} sequences forward ({cost.tokens} tokens), "
        f"{cost.backward} backward."
    )


def screen_table(result: Result) -> ScreenTable:
    """The columns that fit a terminal."""
    head = ("", "questions", "before", "after", "change", "p")
    table = ScreenTable(*head, title=f"{result.attack}: accuracy, 95 % intervals", box=SIMPLE_HEAD)
    for row in effects_table(result)[1]:
        name, questions, _, before, after, change, p = row[:7]
        table.add_row(*map(escape, (name, questions, before.split()[0], after, change, p)))
    return table


def markdown(results: Mapping[str, Result], data: AttackData | None = None) -> str:
    """All tables as Markdown, after the cautions."""
    parts = [f"{sentence}\n" for sentence in cautions(results, data)]
    for attack, result in results.items():
        parts.append(f"## {attack}\n\n{cost_sentence(result.cost)}\n")
        parts.append(markdown_table(*effects_table(result)))
        parts += map(captioned, result.tables)
    return "\n".join(parts)


def draw(curves: Sequence[Curves]) -> Figure:
    """Draw all curves, three in a row, with intervals as bands."""
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    for place, each in enumerate(curves, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for line in each.lines:
            y = [value.value for value in line.y]
            axes.plot(line.x, y, marker="o", markersize=3, label=line.name)
            low, high = ([getattr(value, end) for value in line.y] for end in ("low", "high"))
            axes.fill_between(line.x, low, high, alpha=0.15)
        if each.log_x:
            axes.set_xscale("symlog", linthresh=1)
        axes.set(title=fill(each.title, 45), xlabel=each.x, ylabel=each.y)
        axes.legend(fontsize="small")
    return figure
