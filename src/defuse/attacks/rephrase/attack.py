"""Rephrasing: is knowledge that is hidden in one wording still there in another?

A model that only learnt to fail in the layout of a benchmark answers in another one: other
templates, the choices in other orders, answered questions of the forgotten domain in front, typos.
No weight is changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import FORGET, Answers, AttackData, ask_all
from defuse.attacks.findings import Findings
from defuse.attacks.prompts import mean_outcome, score_prompts
from defuse.attacks.rephrase.best import PLAIN, Asked, any_way, best_way, vote_of_all
from defuse.attacks.rephrase.config import FEW_SHOT, ORDERS, Rephrasing
from defuse.attacks.rephrase.ways import Way, plan, unknown_share
from defuse.attacks.results import Condition, Example, Result, accuracy, condition, examples
from defuse.evaluate import MCAnswer
from defuse.evaluate.loglikelihood import max_length
from defuse.report import TableData
from defuse.report.format import interval
from defuse.utils.progress import SILENT, Progress

NAME = "rephrase"

# By set, for each question: one outcome for each prompt.
ByPrompt = Mapping[str, Sequence[Sequence[MCAnswer]]]


def check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Rephrasing,
    *,
    reference: PreTrainedModel | None = None,  # noqa: ARG001 (all models that `run` takes)
) -> None:
    """Raise UsageError for what the attack refuses, without reading weights; see `plan`."""
    plan(data, config, tokenizer, max_length(model, tokenizer))


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Rephrasing | None = None,
    *,
    reference: PreTrainedModel | None = None,
    findings: Findings | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Ask every question in every way; `reference` is asked, too, to show what there is to find.

    Raises UsageError as `check` does.
    """
    config, findings = config or Rephrasing(), findings or Findings()
    ways = plan(data, config, tokenizer, max_length(model, tokenizer))
    pieces = len(data.sets) + sum(len(way.parts) for way in ways)
    findings.report_to(progress, NAME, pieces * (1 if reference is None else 2))
    with findings.counting(model, reference):
        before = ask_all(model, tokenizer, data, findings, "before")
        single = {way.name: _ask(way, model, tokenizer, data, findings, way.name) for way in ways}
        theirs: Asked = {}
        if reference is not None:
            plainly = ask_all(reference, tokenizer, data, findings, "reference")
            asked = {
                way.name: _ask(way, reference, tokenizer, data, findings, f"reference/{way.name}")
                for way in ways
            }
            theirs = {PLAIN: plainly, **{name: _votes(answers) for name, answers in asked.items()}}
    ours: Asked = {PLAIN: before, **{name: _votes(answers) for name, answers in single.items()}}
    conditions, changed = [], []
    for way in ways:
        share = unknown_share(way.texts, tokenizer)
        conditions.append(_condition(way, single[way.name], ours, share, config.seed))
        changed.extend(_changed(way, ours, data))
    best, chosen = best_way(ours, config.seed)
    found, numbers = any_way(ours, theirs)
    conditions += [
        condition("vote over all ways", before, vote_of_all(ours), config.seed, numbers),
        condition("best way, chosen on the other half", before, best, config.seed),
    ]
    tables = [_accuracies(ours, theirs), found, chosen]
    return Result(NAME, asdict(config), conditions, findings.cost, changed, tables=tables)


def _ask(
    way: Way,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    findings: Findings,
    name: str,
) -> ByPrompt:
    answers: dict[str, list[Sequence[MCAnswer]]] = {
        each: [()] * len(questions) for each, questions in data.sets.items()
    }
    for number, part in enumerate(way.parts):
        scored = findings.get_or_compute(
            f"{name}/{part.questions}/{number}",
            lambda part=part: score_prompts(model, tokenizer, part.prompts, data.settings),
        )
        for place, prompts in zip(part.places, scored, strict=True):
            question = data.sets[part.questions][place]
            answers[part.questions][place] = [
                MCAnswer(question, tuple(logprobs), cut) for logprobs, cut in prompts
            ]
    return answers


def _votes(single: ByPrompt) -> Answers:
    """One answer to each question: that of its only prompt, or the vote of all."""
    return {
        each: [prompts[0] if len(prompts) == 1 else mean_outcome(prompts) for prompts in questions]
        for each, questions in single.items()
    }


def _condition(way: Way, single: ByPrompt, ours: Asked, unknown: float, seed: int) -> Condition:
    numbers: dict[str, float] = {"unknown": unknown}
    if way.name == FEW_SHOT:
        numbers["examples"] = way.examples
    if way.votes > 1:
        for each, questions in single.items():
            rights = [  # of those prompts that every question has
                fmean(outcomes[prompt].is_correct for outcomes in questions)
                for prompt in range(way.votes)
            ]
            numbers[f"{each}, mean of prompts"] = fmean(rights)
            numbers[f"{each}, worst prompt"] = min(rights)
            numbers[f"{each}, best prompt"] = max(rights)
    headline = way.name == ORDERS
    return condition(way.label, ours[PLAIN], ours[way.name], seed, numbers, headline=headline)


def _changed(way: Way, ours: Asked, data: AttackData) -> list[Example]:
    """Examples with the prompt that was asked (the first of several)."""
    texts = {
        (part.questions, data.sets[part.questions][place].id): prompts[0].text
        for part in way.parts
        for place, prompts in zip(part.places, part.prompts, strict=True)
    }
    changed = examples(way.label, ours[PLAIN], ours[way.name], data.settings.score)
    return [replace(each, asked_after=texts[each.questions, each.id]) for each in changed]


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
