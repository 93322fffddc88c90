"""Several models under the same attacks, in tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defuse.attacks.material import FORGET, RETAIN
from defuse.attacks.results import Condition, Effect, Result
from defuse.evaluate import compare
from defuse.experiment.words import interval
from defuse.report import TableData

Results = Mapping[str, Mapping[str, Result]]  # of each model, by kind
NO_ATTACK = "no attack"


@dataclass(frozen=True)
class Strongest:
    """What an attack could do to a set of questions at best, out of so many conditions."""

    condition: str
    effect: Effect
    tried: int


def strongest(conditions: Sequence[Condition], questions: str) -> Strongest | None:
    """The condition that recovers most of the forget set, or breaks most of the retain set.

    The best of many is high by chance alone, so the same is taken of the models it is compared
    with. None if no condition asked this set.
    """
    asked = [each for each in conditions if questions in each.effects]
    if not asked:
        return None
    sign = 1 if questions == FORGET else -1
    best = max(asked, key=lambda each: sign * each.effects[questions].after.accuracy.value)
    return Strongest(best.name, best.effects[questions], len(asked))


def overview(results: Results) -> list[TableData]:
    """Accuracies of all models without an attack and under the strongest of each kind."""
    captions = {
        FORGET: "What comes back: accuracy on the forget set, under each attack's best setting",
        RETAIN: "What breaks: accuracy on the retain set, under each attack's worst setting",
    }
    return [_overview(results, name, caption) for name, caption in captions.items()]


def _overview(results: Results, questions: str, caption: str) -> TableData:
    kinds = list(dict.fromkeys(kind for own in results.values() for kind in own))
    found = {
        (name, kind): strongest(own[kind].conditions, questions)
        for name, own in results.items()
        for kind in own
    }
    rows = [[NO_ATTACK, "", *(_before(own, questions) for own in results.values())]]
    for kind in kinds:
        cells = [found.get((name, kind)) for name in results]
        if any(cells):
            tried = max(each.tried for each in cells if each)
            after = [interval(each.effect.after.accuracy) if each else "" for each in cells]
            rows.append([kind, str(tried), *after])
    return TableData(caption, ["", "settings", *results], rows)


def _before(own: Mapping[str, Result], questions: str) -> str:
    for result in own.values():
        for condition in result.conditions:
            if questions in condition.effects:
                return interval(condition.effects[questions].before.accuracy)
    return ""


def defence(results: Results, pairs: Sequence[tuple[str, str]]) -> TableData:
    """Each defended model minus its undefended twin, under each attack, on the same questions.

    `pairs`: (undefended, defended) names of `results`.
    """
    rows = [
        [defended, kind, questions, *cells]
        for plain, defended in pairs
        for kind in results[plain]
        if kind in results[defended]
        for questions in (FORGET, RETAIN)
        if (cells := _difference(results[defended][kind], results[plain][kind], questions))
    ]
    head = ["", "attack", "questions", "n", "minus the undefended", "p"]
    return TableData("What the defence changes under attack", head, rows)


def _difference(one: Result, other: Result, questions: str) -> list[str]:
    """n, the paired difference under each one's strongest setting, and p; empty if not asked."""
    two = [strongest(each.conditions, questions) for each in (one, other)]
    first, second = (each.effect.after.right if each else {} for each in two)
    asked = [name for name in first if name in second]
    if not asked:
        return []
    found = compare([first[name] for name in asked], [second[name] for name in asked])
    return [str(len(asked)), interval(found.difference), f"{found.p_value:.2g}"]
