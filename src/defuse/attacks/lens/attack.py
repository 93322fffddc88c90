"""Logit lens and linear probe: in which layers can the answer still be read?

Logit lens (nostalgebraist 2020; on unlearned models Łucki et al. 2409.18025): a layer's hidden
states where the answer is predicted go through the final norm and the head as if they were the last
layer's; a letter is one token, a choice's text all of its tokens. Probe: `probe.py`. Both find
below the output what a model hides only there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import Answers, AttackData, ask_all
from defuse.attacks.findings import Findings, compute_beside, compute_with
from defuse.attacks.lens import cloze, letters, probe
from defuse.attacks.lens.config import Lens
from defuse.attacks.results import (
    Condition,
    Curves,
    Example,
    Line,
    Result,
    accuracy,
    condition,
    examples,
)
from defuse.attacks.split_half import cross_fit
from defuse.evaluate import Interval, MCAnswer, bootstrap_mean
from defuse.evaluate.loglikelihood import max_length
from defuse.models.decoder import Decoder
from defuse.questions import Question, Score
from defuse.utils.progress import SILENT, Progress
from defuse.utils.random import generator

NAME = "lens"
LENS, PROBE = "lens", "probe"
CONTROL = "probe, shuffled labels"
EMBEDDING = -1  # as a layer's number: the input of block 0
# How prompts are encoded and read, and how a probe's labels are dealt.
BY_SCORE: Mapping[Score, ModuleType] = {"letters": letters, "cloze": cloze}
Prompts = Sequence[letters.LetterPrompt] | Sequence[cloze.TextPrompt]


@dataclass(frozen=True)
class Readings:
    """What is read of one question set: `outcomes[reading][layer + 1]`, and whether the control
    was right, `control[layer + 1]` (shuffles, questions)."""

    outcomes: Mapping[str, Sequence[Sequence[MCAnswer]]]
    control: Sequence[Sequence[Sequence[bool]]]


def check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Lens,
    *,
    reference: PreTrainedModel | None = None,  # noqa: ARG001 (all models that `run` takes)
) -> None:
    """Raise UsageError for what the attack refuses, without reading weights.

    That is a letter of several tokens, too few questions for a probe, and a probe without
    scikit-learn.
    """
    prepare(model, tokenizer, data, config)


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: AttackData, config: Lens
) -> dict[str, Prompts]:
    """Encode all questions. Raises UsageError as `check` does."""
    way = BY_SCORE[data.settings.score]
    if config.folds:
        probe.check_installed()
        for name, questions in data.sets.items():
            way.check_labels(name, questions)
    length = max_length(model, tokenizer)
    return {
        name: way.prompts_of(tokenizer, questions, data.settings, length)
        for name, questions in data.sets.items()
    }


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Lens | None = None,
    *,
    reference: PreTrainedModel | None = None,
    findings: Findings | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Read every layer's answer to all questions; "before" are the model's own answers.

    `reference`, the model before unlearning, only adds lines to the curves. Raises UsageError as
    `check` does.
    """
    config, findings = config or Lens(), findings or Findings()
    prompts = prepare(model, tokenizer, data, config)
    findings.report_to(progress, NAME, _pieces([model, reference], data, config))
    read = partial(_read_set, data=data, prompts=prompts, config=config, findings=findings)
    with findings.counting(model, reference):
        before = ask_all(model, tokenizer, data, findings, "before")
        found = {name: read(model, name, "model") for name in data.sets}
        known = (
            {}
            if reference is None
            else {name: read(reference, name, "reference") for name in data.sets}
        )
    conditions, changed = _conditions(before, found, config, data.settings.score)
    curves = [_curves(name, found[name], known.get(name), config) for name in found]
    return Result(NAME, asdict(config), conditions, findings.cost, changed, curves)


def _pieces(models: Sequence[PreTrainedModel | None], data: AttackData, config: Lens) -> int:
    """The number of findings: the answers before, and for each model its lens and its probes."""
    layers = [1 + Decoder(each).num_layers for each in models if each is not None]
    return len(data.sets) * (1 + sum(1 + (count if config.folds else 0) for count in layers))


def _read_set(
    model: PreTrainedModel,
    name: str,
    who: str,
    *,
    data: AttackData,
    prompts: Mapping[str, Prompts],
    config: Lens,
    findings: Findings,
) -> Readings:
    """Everything that lens and probe read of one question set."""
    questions, mine, way = data.sets[name], prompts[name], BY_SCORE[data.settings.score]
    counts = [len(question.choices) for question in questions]

    def compute() -> tuple[list[list[list[float]]], Tensor]:
        budget, probes = data.settings.token_budget, config.folds > 0
        values, states = way.look(model, mine, budget, with_states=probes)
        rows = [
            [row[:n] for row, n in zip(layer, counts, strict=True)] for layer in values.tolist()
        ]
        return rows, states

    read, states = compute_beside(findings, f"{who}/{name}/lens", compute)
    outcomes, control = {LENS: [_outcomes(questions, mine, values) for values in read]}, []
    if config.folds:
        probed = []
        for place in range(len(read)):
            own, shuffled = compute_with(
                findings,
                f"{who}/{name}/probe/{_label(place)}",
                lambda place=place: states()[place],
                lambda some: _probe(some, questions, config, name, way),
            )
            probed.append(_outcomes(questions, mine, own))
            control.append(shuffled)
        outcomes[PROBE] = probed
    return Readings(outcomes, control)


def _probe(
    states: Tensor, questions: Sequence[Question], config: Lens, name: str, way: ModuleType
) -> tuple[list[list[float]], list[list[bool]]]:
    """Held-out log-probabilities; and for each draw of shuffled labels, whether they were found."""
    labels = [question.answer for question in questions]
    counts = [len(question.choices) for question in questions]
    rows = probe.features(states, counts)

    def held_out(labels: Sequence[int], *purpose: str | int) -> list[list[float]]:
        draws = generator(config.seed, "folds", name, *purpose)
        fold = probe.deal(way.strata(labels), config.folds, draws)
        return probe.held_out(rows, labels, counts, fold, config.penalty)

    control = []
    for draw in range(config.shuffles):
        draws = generator(config.seed, "shuffled labels", name, draw)
        shuffled = way.shuffled(labels, counts, draws)
        values = held_out(shuffled, draw)
        control.append(
            [row.index(max(row)) == label for row, label in zip(values, shuffled, strict=True)]
        )
    return held_out(labels), control


def _outcomes(
    questions: Sequence[Question], prompts: Prompts, values: Sequence[Sequence[float]]
) -> list[MCAnswer]:
    return [
        MCAnswer(question, tuple(logprobs), prompt.truncated)
        for question, prompt, logprobs in zip(questions, prompts, values, strict=True)
    ]


def _label(place: int) -> str:
    return "embedding" if place == 0 else f"layer {place + EMBEDDING}"


def _conditions(
    before: Answers, found: Mapping[str, Readings], config: Lens, score: Score
) -> tuple[list[Condition], list[Example]]:
    """Each layer by itself, and the best one as chosen on the other half of the questions."""
    conditions: list[Condition] = []
    changed: list[Example] = []
    for reading in (LENS, PROBE) if config.folds else (LENS,):
        by_set = {name: readings.outcomes[reading] for name, readings in found.items()}
        for place in range(len(next(iter(by_set.values())))):
            after = {name: layers[place] for name, layers in by_set.items()}
            numbers = {
                f"{name}, shuffled labels": _control(readings, place, config.seed).value
                for name, readings in found.items()
                if reading == PROBE
            }
            label = f"{reading}, {_label(place)}"
            conditions.append(condition(label, before, after, config.seed, numbers, headline=False))
        label = f"{reading}, chosen layer"
        chosen = {name: cross_fit(layers, config.seed, name) for name, layers in by_set.items()}
        after = {name: outcomes for name, (outcomes, _) in chosen.items()}
        numbers = {
            f"{name}, layer for half {half}": float(place + EMBEDDING)
            for name, (_, places) in chosen.items()
            for half, place in enumerate(places, start=1)
        }
        conditions.append(condition(label, before, after, config.seed, numbers))
        changed.extend(examples(label, before, after, score))
    return conditions, changed


def _curves(name: str, own: Readings, known: Readings | None, config: Lens) -> Curves:
    lines = [*_lines(own, "", config)]
    if known is not None:
        lines += _lines(known, "reference, ", config)
    title = f"{name}: answers read from each layer ({EMBEDDING} = the embedding)"
    return Curves(title, "layer", "accuracy", lines)


def _lines(readings: Readings, before: str, config: Lens) -> list[Line]:
    by_reading = {
        reading: [accuracy(outcomes) for outcomes in layers]
        for reading, layers in readings.outcomes.items()
    }
    if config.folds:
        places = range(len(readings.control))
        by_reading[CONTROL] = [_control(readings, place, config.seed) for place in places]
    return [
        Line(before + reading, [float(place + EMBEDDING) for place in range(len(y))], y)
        for reading, y in by_reading.items()
    ]


def _control(readings: Readings, place: int, seed: int) -> Interval:
    """Accuracy over draws of shuffled labels, bootstrapped over draws and over questions."""
    right = torch.tensor(readings.control[place], dtype=torch.float64)
    return bootstrap_mean(right, seed)
