"""Rephrasing: is knowledge that is denied in one wording still there in another?

Unlearning that only learnt to fail in a benchmark's own layout is undone by asking in another one:
other templates, the choices in other orders, answered questions of the forgotten domain in front,
typos. No weight is changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import FORGET, Answers, Material, ask_all
from defuse.attacks.notes import Notes
from defuse.attacks.prompts import mean_outcome, score_forms
from defuse.attacks.rephrase.best import PLAIN, Asked, any_way, best_way, vote_of_all
from defuse.attacks.rephrase.rewording import FEW_SHOT, Rephrasing, Way, plan, unknown_share
from defuse.attacks.results import Condition, Example, Result, accuracy, condition, examples
from defuse.evaluate import MCAnswer
from defuse.evaluate.loglikelihood import max_length
from defuse.report import TableData
from defuse.report.format import interval

KIND = "rephrase"

Single = Mapping[str, Sequence[Sequence[MCAnswer]]]  # of each set and question: one for each form


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: Rephrasing | None = None,
    *,
    reference: PreTrainedModel | None = None,
    notes: Notes | None = None,
) -> Result:
    """Ask every question in every way; with `reference`, it too, to say what was there to find.

    Raises UsageError as `plan` does.
    """
    config, notes = config or Rephrasing(), notes or Notes()
    ways = plan(material, config, tokenizer, max_length(model, tokenizer))
    with notes.watching(model, reference):
        before = ask_all(model, tokenizer, material, notes, "before")
        single = {way.name: _ask(way, model, tokenizer, material, notes, way.name) for way in ways}
        theirs: Asked = {}
        if reference is not None:
            plainly = ask_all(reference, tokenizer, material, notes, "reference")
            asked = {
                way.name: _ask(way, reference, tokenizer, material, notes, f"reference/{way.name}")
                for way in ways
            }
            theirs = {PLAIN: plainly, **{name: _votes(answers) for name, answers in asked.items()}}
    ours: Asked = {PLAIN: before, **{name: _votes(answers) for name, answers in single.items()}}
    conditions, turned = [], []
    for way in ways:
        share = unknown_share(way.texts, tokenizer)
        conditions.append(_condition(way, single[way.name], ours, share, config.seed))
        turned.extend(_turned(way, ours, material))
    best, chosen = best_way(ours, config.seed)
    found, numbers = any_way(ours, theirs)
    conditions += [
        condition("vote over all ways", before, vote_of_all(ours), config.seed, numbers),
        condition("best way, chosen on the other half", before, best, config.seed),
    ]
    tables = [_accuracies(ours, theirs), found, chosen]
    return Result(KIND, asdict(config), conditions, notes.cost, turned, tables=tables)


def _ask(
    way: Way,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    notes: Notes,
    name: str,
) -> Single:
    answers: dict[str, list[Sequence[MCAnswer]]] = {
        each: [()] * len(questions) for each, questions in material.sets.items()
    }
    for number, part in enumerate(way.parts):
        scored = notes.once(
            f"{name}/{part.questions}/{number}",
            lambda part=part: score_forms(model, tokenizer, part.forms, material.settings),
        )
        for place, forms in zip(part.places, scored, strict=True):
            question = material.sets[part.questions][place]
            answers[part.questions][place] = [MCAnswer(question, tuple(f), cut) for f, cut in forms]
    return answers


def _votes(single: Single) -> Answers:
    """One answer to each question: that of its only form, or the vote of all."""
    return {
        each: [forms[0] if len(forms) == 1 else mean_outcome(forms) for forms in questions]
        for each, questions in single.items()
    }


def _condition(way: Way, single: Single, ours: Asked, unknown: float, seed: int) -> Condition:
    forms = way.forms
    numbers: dict[str, float] = {"unknown": unknown}
    if way.name == FEW_SHOT:
        numbers["examples"] = way.examples
    if forms > 1:
        for each, questions in single.items():
            rights = [
                sum(outcomes[form].is_correct for outcomes in questions) / len(questions)
                for form in range(forms)
            ]
            numbers[f"{each}, mean of forms"] = sum(rights) / forms
            numbers[f"{each}, worst form"] = min(rights)
            numbers[f"{each}, best form"] = max(rights)
    return condition(way.label, ours[PLAIN], ours[way.name], seed, numbers)


def _turned(way: Way, ours: Asked, material: Material) -> list[Example]:
    """Examples with the text that was asked (of several forms, the first)."""
    texts = {
        (part.questions, material.sets[part.questions][place].id): forms[0].text
        for part in way.parts
        for place, forms in zip(part.places, part.forms, strict=True)
    }
    turned = examples(way.label, ours[PLAIN], ours[way.name], material.settings.score)
    return [replace(each, asked_after=texts[each.questions, each.id]) for each in turned]


def _accuracies(ours: Asked, theirs: Asked) -> TableData:
    """Each way's accuracy on both sets, and the reference's on the forget questions."""
    head = ("way", "forget", "retain", *(("forget, reference",) if theirs else ()))
    rows = [
        [
            name,
            *(_accuracy(outcomes) for outcomes in answers.values()),
            *([_accuracy(theirs[name][FORGET])] if theirs else []),
        ]
        for name, answers in ours.items()
    ]
    return TableData("Accuracy in each way of asking", head, rows)


def _accuracy(outcomes: Sequence[MCAnswer]) -> str:
    return interval(accuracy(outcomes), 3)
