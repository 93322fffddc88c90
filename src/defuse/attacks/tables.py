"""Results as tables, on the screen, as Markdown and for the page."""

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as ScreenTable

from defuse.attacks.notes import Cost
from defuse.attacks.results import Condition, Result
from defuse.report.format import captioned, interval, markdown_table

HEAD = ("", "questions", "n", "before", "after", "change", "p", "change, nats")


def effects_table(result: Result) -> tuple[Sequence[str], list[list[str]]]:
    """Every condition's effect on every set it was asked: accuracies, and the log-probability."""
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
    """A number beside the set it is about: "forget, …" stands in that set's row alone."""
    other = any(name.startswith(f"{each},") for each in condition.effects if each != questions)
    return "" if other or name not in condition.numbers else f"{condition.numbers[name]:.4g}"


def cost_sentence(cost: Cost) -> str:
    """What an attack took."""
    return (
        f"{cost.seconds:.0f} s; {cost.forward} sequences forward ({cost.tokens} tokens), "
        f"{cost.backward} backward."
    )


def screen_table(result: Result) -> ScreenTable:
    """What fits a terminal."""
    head = ("", "questions", "before", "after", "change", "p")
    table = ScreenTable(*head, title=f"{result.kind}: accuracy, 95 % intervals", box=SIMPLE_HEAD)
    for row in effects_table(result)[1]:
        name, questions, _, before, after, change, p = row[:7]
        table.add_row(*map(escape, (name, questions, before.split()[0], after, change, p)))
    return table


def markdown(results: Mapping[str, Result]) -> str:
    """All tables, for a page of documentation."""
    parts = []
    for kind, result in results.items():
        parts.append(f"## {kind}\n\n{cost_sentence(result.cost)}\n")
        parts.append(markdown_table(*effects_table(result)))
        parts += map(captioned, result.tables)
    return "\n".join(parts)
