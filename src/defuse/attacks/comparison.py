"""Several models under the same attacks: conditions named beforehand, controls beside them."""

from collections.abc import Mapping, Sequence

from defuse.attacks.data import FORGET, RETAIN
from defuse.attacks.registry import ATTACKS
from defuse.attacks.results import Effect, Result
from defuse.evaluate import compare
from defuse.report import TableData
from defuse.report.format import interval, of_columns

Results = Mapping[str, Mapping[str, Result]]  # by model and attack
Effects = Mapping[tuple[str, str], Effect]  # of a model, by "attack: condition" and question set
BESIDE = 8  # models, at most
CAPTIONS = {
    FORGET: "What comes back: accuracy on the forget set",
    RETAIN: "What breaks: accuracy on the retain set",
}


def headlines(results: Mapping[str, Result]) -> Effects:
    """The effects of a model's headline conditions."""
    return {
        (f"{attack}: {each.name}", questions): effect
        for attack, result in results.items()
        for each in result.conditions
        if each.headline
        for questions, effect in each.effects.items()
    }


def overview(results: Results) -> list[TableData]:
    """Each headline condition's accuracies for either set of questions.

    Model beside model; where they are too many, one below the other, in a table for each attack.
    """
    if len(results) <= BESIDE:
        found = {name: headlines(own) for name, own in results.items()}
        return [_overview(found, questions, beside=True) for questions in CAPTIONS]
    alone = [
        {name: headlines({attack: own[attack]}) for name, own in results.items() if attack in own}
        for attack in ATTACKS
    ]
    tables = [
        _overview(found, questions, beside=False) for questions in CAPTIONS for found in alone
    ]
    return [table for table in tables if len(table.head) > 1]


def _overview(found: Mapping[str, Effects], questions: str, *, beside: bool) -> TableData:
    keys = dict.fromkeys(key for own in found.values() for key in own if key[1] == questions)
    models = [[name, *(_change(own.get(key)) for key in keys)] for name, own in found.items()]
    counts = [max(own[key].after.n for own in found.values() if key in own) for key in keys]
    labels = [label for label, _ in keys]
    if beside:
        columns = [["", *labels], ["n", *map(str, counts)], *models]
        return of_columns(CAPTIONS[questions], columns)
    head = [f"{label} (n = {n})" for label, n in zip(labels, counts, strict=True)]
    return TableData(CAPTIONS[questions], ["", *head], models)


def _change(effect: Effect | None) -> str:
    if effect is None:
        return ""
    return f"{effect.before.accuracy.value:.2f} → {interval(effect.after.accuracy)}"


def defence(results: Results, pairs: Sequence[tuple[str, str]]) -> TableData:
    """Each defended model minus its undefended twin under each attack, on the same questions.

    `pairs`: (undefended, defended) names; those of which one has no results are left out.
    """
    rows = []
    for plain, defended in pairs:
        theirs = headlines(results.get(plain, {}))
        for key, effect in headlines(results.get(defended, {})).items():
            if key in theirs and (cells := _difference(effect, theirs[key])):
                rows.append([defended, *key, *cells])
    head = ["", "attack", "questions", "n", "minus the undefended", "p"]
    return TableData("What the defence changes under attack", head, rows)


def _difference(one: Effect, other: Effect) -> list[str]:
    """n, the paired difference of the accuracies and p; empty if no question was asked of both."""
    first, second = one.after.right, other.after.right
    asked = [name for name in first if name in second]
    if not asked:
        return []
    found = compare([first[name] for name in asked], [second[name] for name in asked])
    return [str(len(asked)), interval(found.difference), f"{found.p_value:.2g}"]
