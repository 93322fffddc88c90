"""Logit lens and linear probe: in which layers is the answer still there to be read?

Logit lens (nostalgebraist 2020; on unlearned models Łucki et al. 2409.18025): a layer's hidden
states where the answer is predicted, through the final norm and the head as if they were the last
layer's; a letter's one token, or all tokens of a choice's text. Probe: `probe.py`. What a model
hides at its output alone, both find below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.beside import once_beside, once_with
from defuse.attacks.data import Answers, Material, ask_all
from defuse.attacks.lens import cloze, letters, probe
from defuse.attacks.notes import Notes
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
from defuse.attacks.split_half import crosswise
from defuse.evaluate import Interval, MCAnswer, bootstrap_mean
from defuse.evaluate.loglikelihood import max_length
from defuse.questions import Question, Score
from defuse.utils.errors import require
from defuse.utils.random import generator

KIND = "lens"
LENS, PROBE = "lens", "probe"
CONTROL = "probe, shuffled labels"
EMBEDDING = -1  # as a layer's number: what enters block 0
# How prompts are made and read, and a probe's labels dealt out.
WAYS: Mapping[Score, ModuleType] = {"letters": letters, "cloze": cloze}
Prompts = Sequence[letters.Prompt] | Sequence[cloze.Prompt]


@dataclass(frozen=True)
class Lens:
    """`folds`: parts of the questions for the probe, each held out once; 0 = no probe. `penalty`:
    of its weights, times ½‖W‖² beside the summed loss. `shuffles`: draws of its control. `seed`
    draws folds, labels, halves and bootstraps."""

    folds: int = 5
    penalty: float = 1.0
    shuffles: int = 3
    seed: int = 42

    def __post_init__(self) -> None:
        require(self.folds == 0 or self.folds > 1, "lens.folds", self.folds, "must be 0 or above 1")
        require(0 < self.penalty < float("inf"), "lens.penalty", self.penalty, "must be above 0")
        require(self.shuffles > 0, "lens.shuffles", self.shuffles, "must be at least 1")


@dataclass(frozen=True)
class Readings:
    """Of one set of questions: `outcomes[kind][layer + 1]`, and the control's right answers,
    `control[layer + 1]` (shuffles, questions)."""

    outcomes: Mapping[str, Sequence[Sequence[MCAnswer]]]
    control: Sequence[Sequence[Sequence[bool]]]


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: Lens | None = None,
    *,
    reference: PreTrainedModel | None = None,
    notes: Notes | None = None,
) -> Result:
    """Read every layer's answer to all questions; before = the model's own answers.

    `reference` (the model before unlearning) only adds lines to the curves. Raises UsageError for
    letters of several tokens, and where questions are too few for a probe.
    """
    config, notes = config or Lens(), notes or Notes()
    prompts = _prepare(model, tokenizer, material, config)
    read = partial(_read_set, material=material, prompts=prompts, config=config, notes=notes)
    with notes.watching(model, reference):
        before = ask_all(model, tokenizer, material, notes, "before")
        found = {name: read(model, name, "model") for name in material.sets}
        known = (
            {}
            if reference is None
            else {name: read(reference, name, "reference") for name in material.sets}
        )
    conditions, turned = _conditions(before, found, config, material.settings.score)
    curves = [_curves(name, found[name], known.get(name), config) for name in found]
    return Result(KIND, asdict(config), conditions, notes.cost, turned, curves)


def _prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, material: Material, config: Lens
) -> dict[str, Prompts]:
    way = WAYS[material.settings.score]
    if config.folds:
        probe.check_installed()
        for name, questions in material.sets.items():
            way.check_labels(name, [question.answer for question in questions])
    length = max_length(model, tokenizer)
    return {
        name: way.prompts_of(tokenizer, questions, material.settings, length)
        for name, questions in material.sets.items()
    }


def _read_set(
    model: PreTrainedModel,
    name: str,
    who: str,
    *,
    material: Material,
    prompts: Mapping[str, Prompts],
    config: Lens,
    notes: Notes,
) -> Readings:
    """All that lens and probe read of one set of questions."""
    questions, mine, way = material.sets[name], prompts[name], WAYS[material.settings.score]

    def find() -> tuple[list[list[list[float]]], Tensor]:
        budget, probes = material.settings.token_budget, config.folds > 0
        values, states = way.look(model, mine, budget, with_states=probes)
        return values.tolist(), states

    read, states = once_beside(notes, f"{who}/{name}/lens", find)
    outcomes, control = {LENS: [_outcomes(questions, mine, values) for values in read]}, []
    if config.folds:
        labels, probed = [question.answer for question in questions], []
        for place in range(len(read)):
            own, shuffled = once_with(
                notes,
                f"{who}/{name}/probe/{_label(place)}",
                lambda place=place: states()[place],
                lambda some: _probe(some, labels, config, name, way),
            )
            probed.append(_outcomes(questions, mine, own))
            control.append(shuffled)
        outcomes[PROBE] = probed
    return Readings(outcomes, control)


def _probe(
    states: Tensor, labels: Sequence[int], config: Lens, name: str, way: ModuleType
) -> tuple[list[list[float]], list[list[bool]]]:
    """Held-out log-probabilities, and right or wrong with labels mixed, by draw."""
    rows = probe.features(states)

    def held_out(labels: Sequence[int], *purpose: str | int) -> list[list[float]]:
        draws = generator(config.seed, "folds", name, *purpose)
        fold = probe.deal(way.strata(labels), config.folds, draws)
        return probe.held_out(rows, labels, fold, config.penalty)

    control = []
    for draw in range(config.shuffles):
        draws = generator(config.seed, "shuffled labels", name, draw)
        mixed = way.mixed(labels, draws)
        values = torch.tensor(held_out(mixed, draw))
        control.append((values.argmax(dim=1) == torch.tensor(mixed)).tolist())
    return held_out(labels), control


def _outcomes(
    questions: Sequence[Question], prompts: Prompts, values: Sequence[Sequence[float]]
) -> list[MCAnswer]:
    return [
        MCAnswer(question, tuple(four), prompt.truncated)
        for question, prompt, four in zip(questions, prompts, values, strict=True)
    ]


def _label(place: int) -> str:
    return "embedding" if place == 0 else f"layer {place + EMBEDDING}"


def _conditions(
    before: Answers, found: Mapping[str, Readings], config: Lens, score: Score
) -> tuple[list[Condition], list[Example]]:
    """Each layer by itself, and the best one as chosen on the other half of the questions."""
    conditions: list[Condition] = []
    turned: list[Example] = []
    kinds = (LENS, PROBE) if config.folds else (LENS,)
    for kind in kinds:
        by_set = {name: readings.outcomes[kind] for name, readings in found.items()}
        for place in range(len(next(iter(by_set.values())))):
            after = {name: layers[place] for name, layers in by_set.items()}
            numbers = {
                f"{name}, shuffled labels": _control(readings, place, config.seed).value
                for name, readings in found.items()
                if kind == PROBE
            }
            called = f"{kind}, {_label(place)}"
            conditions.append(condition(called, before, after, config.seed, numbers))
        called = f"{kind}, chosen layer"
        chosen = {name: crosswise(layers, config.seed, name) for name, layers in by_set.items()}
        after = {name: outcomes for name, (outcomes, _) in chosen.items()}
        numbers = {
            f"{name}, layer for half {half}": float(place + EMBEDDING)
            for name, (_, places) in chosen.items()
            for half, place in enumerate(places, start=1)
        }
        conditions.append(condition(called, before, after, config.seed, numbers))
        turned.extend(examples(called, before, after, score))
    return conditions, turned


def _curves(name: str, own: Readings, known: Readings | None, config: Lens) -> Curves:
    lines = [*_lines(own, "", config)]
    if known is not None:
        lines += _lines(known, "reference, ", config)
    title = f"{name}: answers read off each layer ({EMBEDDING} = the embedding)"
    return Curves(title, "layer", "accuracy", lines)


def _lines(readings: Readings, before: str, config: Lens) -> list[Line]:
    by_kind = {
        kind: [accuracy(outcomes) for outcomes in layers]
        for kind, layers in readings.outcomes.items()
    }
    if config.folds:
        places = range(len(readings.control))
        by_kind[CONTROL] = [_control(readings, place, config.seed) for place in places]
    return [
        Line(before + kind, [float(place + EMBEDDING) for place in range(len(y))], y)
        for kind, y in by_kind.items()
    ]


def _control(readings: Readings, place: int, seed: int) -> Interval:
    """Accuracy over draws of shuffled labels, bootstrapped crosswise over draws and questions."""
    right = torch.tensor(readings.control[place], dtype=torch.float64)
    return bootstrap_mean(right, seed)
