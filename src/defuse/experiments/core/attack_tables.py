"""Several models under the same attacks: conditions named beforehand, controls beside them."""

from collections.abc import Mapping, Sequence

from defuse.attacks.data import FORGET, RETAIN
from defuse.attacks.registry import ATTACKS
from defuse.attacks.results import Condition, Effect, Result
from defuse.evaluate import compare
from defuse.report import TableData
from defuse.report.format import interval

Results = Mapping[str, Mapping[str, Result]]  # by model and attack
Headlines = Mapping[str, Sequence[tuple[str, Condition]]]  # of each model
BESIDE = 8  # models, at most
CAPTIONS = {
    FORGET: "What comes back: accuracy on the forget set",
    RETAIN: "What breaks: accuracy on the retain set",
}


def overview(results: Results) -> list[TableData]:
    """Each headline condition's accuracies for either set of questions.

    Model beside model; where they are too many, one below the other, in a table for each attack.
    """
    if len(results) <= BESIDE:
        return [_overview(_headlines(results), questions) for questions in CAPTIONS]
    attacks = [attack for attack in ATTACKS if any(attack in own for own in results.values())]
    alone = {
        attack: _headlines(
            {name: {attack: own[attack]} for name, own in results.items() if attack in own}
        )
        for attack in attacks
    }
    tables = [_overview(alone[attack], questions) for questions in CAPTIONS for attack in attacks]
    return [_turned(table) for table in tables if table.rows]


def _headlines(results: Results) -> Headlines:
    return {
        name: [each for attack, result in own.items() for each in headlines(attack, result)]
        for name, own in results.items()
    }


def headlines(attack: str, result: Result) -> list[tuple[str, Condition]]:
    """The headline conditions of a result, each as "attack: name"."""
    return [(f"{attack}: {each.name}", each) for each in result.conditions if each.headline]


def _overview(found: Headlines, questions: str) -> TableData:
    asked = {
        name: {label: each.effects[questions] for label, each in own if questions in each.effects}
        for name, own in found.items()
    }
    labels = list(dict.fromkeys(label for own in asked.values() for label in own))
    rows = []
    for label in labels:
        effects = [own.get(label) for own in asked.values()]
        n = max(each.after.n for each in effects if each)
        cells = [_change(each) if each else "" for each in effects]
        rows.append([label, str(n), *cells])
    return TableData(CAPTIONS[questions], ["", "n", *asked], rows)


def _turned(table: TableData) -> TableData:
    """Its columns of models as rows."""
    labels = [f"{label} (n = {n})" for label, n, *_ in table.rows]
    columns = list(zip(*(row[2:] for row in table.rows), strict=True))
    rows = [[model, *cells] for model, cells in zip(table.head[2:], columns, strict=True)]
    return TableData(table.caption, ["", *labels], rows)


def _change(effect: Effect) -> str:
    return f"{effect.before.accuracy.value:.2f} → {interval(effect.after.accuracy)}"


def defence(results: Results, pairs: Sequence[tuple[str, str]]) -> TableData:
    """Each defended model minus its undefended twin under each attack, on the same questions.

    `pairs`: (undefended, defended) names of `results`.
    """
    rows = [
        [defended, label, questions, *cells]
        for plain, defended in pairs
        for attack in results[plain]
        if attack in results[defended]
        for label, one, other in _twins(attack, results[defended][attack], results[plain][attack])
        for questions in CAPTIONS
        if (cells := _difference(one, other, questions))
    ]
    head = ["", "attack", "questions", "n", "minus the undefended", "p"]
    return TableData("What the defence changes under attack", head, rows)


def _twins(attack: str, one: Result, other: Result) -> list[tuple[str, Condition, Condition]]:
    second = dict(headlines(attack, other))
    return [(n, each, second[n]) for n, each in headlines(attack, one) if n in second]


def _difference(one: Condition, other: Condition, questions: str) -> list[str]:
    """n, the paired difference of the accuracies and p; empty if not both were asked."""
    if questions not in one.effects or questions not in other.effects:
        return []
    first, second = (each.effects[questions].after.right for each in (one, other))
    asked = [name for name in first if name in second]
    if not asked:
        return []
    found = compare([first[name] for name in asked], [second[name] for name in asked])
    return [str(len(asked)), interval(found.difference), f"{found.p_value:.2g}"]
