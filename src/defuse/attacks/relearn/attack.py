"""Relearning: how fast does the knowledge come back by fine-tuning (2402.16835, 2406.13356)?

A copy is trained on k texts of the forget set, or on texts that have nothing to do with it
(2409.18025: ten of them undo RMU), and asked on the way. What was truly forgotten comes back no
faster than a model that never knew it, the gold standard, learns it from the same texts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import FORGET, RETAIN, Material, ask_all, noted, restored
from defuse.attacks.notes import Notes
from defuse.attacks.relearn.loop import Pupil, Teaching
from defuse.attacks.relearn.tables import Stage, against_texts, beside_gold, curves
from defuse.attacks.results import Condition, Example, Result, condition, examples
from defuse.data.text import Encoded, encode
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.models.load import require_plain_weights
from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError, require
from defuse.utils.random import generator

KIND = "relearn"
PREFIXES = {"model": "", "gold": "gold, "}  # of conditions' and notes' names


@dataclass(frozen=True)
class Relearning:
    """`texts`: how many of each `source` to train on (k), each time from the start; 0 = untrained.

    Each training takes `steps` of AdamW, `batch_size` texts each, and is asked `checkpoints` times
    on the way, each time after twice as many steps. `lora`: rank of factors beside all linear
    modules of the blocks (alpha 16); None trains every weight, which wants a learning rate of about
    a tenth. Texts are cut after `length` tokens. `recompute` runs blocks again in the backward pass
    instead of keeping what is in them: less memory, more time. `seed` draws texts, their order, the
    factors and bootstraps. The defaults are those of 2409.18025's code for 100 texts (3 epochs),
    but at a constant rate, without weight decay and clipping.
    """

    texts: tuple[int, ...] = (0, 10, 100, 1000)
    source: tuple[str, ...] = (FORGET, RETAIN)
    steps: int = 300
    checkpoints: int = 5
    batch_size: int = 1
    learning_rate: float = 2e-4
    lora: int | None = 128
    length: int = 1024
    recompute: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        require(bool(self.texts), "relearn.texts", self.texts, "must name at least one number")
        for texts in self.texts:
            require(texts >= 0, "relearn.texts", texts, "must not be negative")
        require(bool(self.source), "relearn.source", self.source, "must name forget or retain")
        for source in self.source:
            remedy = "is unknown; use one of forget, retain"
            require(source in (FORGET, RETAIN), "relearn.source", source, remedy)
        for field in ("steps", "checkpoints", "batch_size"):
            value = getattr(self, field)
            require(value > 0, f"relearn.{field}", value, "must be at least 1")
        require(self.lora is None or self.lora > 0, "relearn.lora", self.lora, "must be at least 1")
        require(self.length > 1, "relearn.length", self.length, "is below 2")
        rate, remedy = self.learning_rate, "must be a finite number above 0"
        require(0 < rate < math.inf, "relearn.learning_rate", rate, remedy)

    @property
    def asked_at(self) -> list[int]:
        """After how many steps the copy is asked."""
        return sorted({-(-self.steps // 2**halvings) for halvings in range(self.checkpoints)})

    @property
    def teaching(self) -> Teaching:
        """How each copy is trained."""
        return Teaching(self.batch_size, self.learning_rate, self.lora, self.recompute, self.seed)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: Relearning | None = None,
    *,
    gold: PreTrainedModel | None = None,
    notes: Notes | None = None,
) -> Result:
    """Ask `model` before, and copies of it that learn k texts of each source.

    `gold`, which never knew what `model` forgot, learns the same texts in the same order. Where
    there are fewer than k texts, all are taken, and a condition says what was wanted
    ("texts_wanted"). Raises UsageError for no texts, for texts without a token to predict, for
    float16, for quantised weights that shall be trained, and for LoRA without peft.
    """
    config, notes = config or Relearning(), notes or Notes()
    models = {"model": model} if gold is None else {"model": model, "gold": gold}
    for each in models.values():
        _check_trainable(each, config)
    lessons = make_lessons(model, tokenizer, material, config)
    stages: dict[str, list[Stage]] = {}
    with ExitStack() as stack:
        stack.enter_context(notes.watching(*models.values()))
        for each in models.values():
            stack.enter_context(frozen_model(each))
        for name, each in models.items():
            school = _School(each, tokenizer, material, config, notes, PREFIXES[name])
            stages[name] = list(school.stages(lessons))
    return Result(
        KIND,
        asdict(config),
        [
            found
            for name, some in stages.items()
            for found in _conditions(PREFIXES[name], some, config)
        ],
        notes.cost,
        list(_examples(stages["model"], material)),
        curves(stages),
        [] if gold is None else beside_gold(stages["model"], stages["gold"]),
    )


def _check_trainable(model: PreTrainedModel, config: Relearning) -> None:
    remedy = "lets small gradients vanish in training: use bfloat16 or float32"
    require(model.dtype != torch.float16, "dtype", "float16", remedy)
    if config.lora is None:
        require_plain_weights(model, "relearn.lora", "give a rank, or the model as it was before")


def make_lessons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: Relearning,
) -> dict[str, list[Encoded]]:
    """The most texts that any training takes of each source, in drawn order, as token ids.

    A training on fewer takes the first of them. Raises UsageError as `run` does.
    """
    check_installed(config)
    reads = Decoder(model).max_positions
    length = config.length if reads is None else min(config.length, reads)
    lessons = {}
    for source in dict.fromkeys(config.source):
        drawn = _draw(material.given_texts(source), source, config)
        try:
            lessons[source] = encode(drawn, tokenizer, length)
        except UsageError as error:
            raise UsageError(f"{source}_texts: {error}") from error
    return lessons


def check_installed(config: Relearning) -> None:
    """Raise UsageError for LoRA without peft."""
    if config.lora is not None and find_spec("peft") is None:
        raise UsageError(
            f"relearn.lora: needs the peft package; {install_hint('peft')}, or train every weight "
            "with lora None"
        )


def _draw(texts: Sequence[str], source: str, config: Relearning) -> list[str]:
    most = max(config.texts)
    if most > 0 and not texts:
        raise UsageError(
            f"{source}_texts: there are none to relearn on; give --{source}-texts FILE, or leave "
            "the source out (the questions themselves would be the answer key)"
        )
    order = torch.randperm(len(texts), generator=generator(config.seed, "relearn", source))
    return [texts[int(row)] for row in order[:most]]


@dataclass(frozen=True)
class _School:
    """One model, of which copies are taught; `prefix` is what its notes' names begin with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    material: Material
    config: Relearning
    notes: Notes
    prefix: str

    def stages(self, lessons: Mapping[str, Sequence[Encoded]]) -> Iterator[Stage]:
        """By source and number of texts, each before and at every checkpoint."""
        name = f"{self.prefix}before"
        before = ask_all(self.model, self.tokenizer, self.material, self.notes, name)
        for source, texts in lessons.items():
            yield Stage(source, 0, 0, None, before)
            for size in sizes(self.config.texts, len(texts)):
                yield from self._taught(source, texts[:size])

    def _taught(self, source: str, texts: Sequence[Encoded]) -> Iterator[Stage]:
        """A copy that learns `texts` is asked at every checkpoint that has no answers yet.

        After a stop it learns again from its start, as far as is needed, which is not counted.
        """
        pupil = Pupil(self.model, texts, self.config.teaching, f"{source}/{len(texts)}")
        for done, steps in pairwise([0, *self.config.asked_at]):
            name = f"{self.prefix}{source}, {len(texts)} texts, {steps} steps"
            if not self.notes.knows(name):
                pupil.after(done)  # what a stop undid was counted when it was done
            found = self.notes.once(name, partial(self._ask, pupil, done, steps))
            answers = {
                each: restored(questions, found["answers"][each])
                for each, questions in self.material.sets.items()
            }
            yield Stage(source, len(texts), steps, found["loss"], answers)

    def _ask(self, pupil: Pupil, done: int, steps: int) -> dict[str, Any]:
        """The loss since step `done`, and all answers, as JSON values."""
        learnt = pupil.after(steps)
        asked = ask_all(learnt, self.tokenizer, self.material, Notes(), "after")
        return {
            "loss": fmean(pupil.losses[done:steps]),
            "answers": {each: noted(outcomes) for each, outcomes in asked.items()},
        }


def sizes(wanted: Sequence[int], there: int) -> list[int]:
    """The numbers of texts to train on where `there` are so many, rising, each once."""
    return sorted({min(texts, there) for texts in wanted if texts > 0})


def _conditions(prefix: str, stages: Sequence[Stage], config: Relearning) -> Iterator[Condition]:
    """Untrained where that is asked for, and each training at its end."""
    before = stages[0].answers
    if 0 in config.texts:
        numbers = {"texts": 0, "steps": 0}
        yield condition(f"{prefix}0 texts", before, before, config.seed, numbers)
    for stage in against_texts(stages):
        if stage.loss is not None:
            name = f"{prefix}{stage.source}, {stage.texts} texts"
            numbers = {"texts": stage.texts, "steps": stage.steps, "loss": stage.loss}
            if stage.texts not in config.texts:
                numbers["texts_wanted"] = min(k for k in config.texts if k > stage.texts)
            yield condition(name, before, stage.answers, config.seed, numbers)


def _examples(stages: Sequence[Stage], material: Material) -> Iterator[Example]:
    """Answers that the training on the most texts of each source turned."""
    before, ends = stages[0].answers, {stage.source: stage for stage in stages}
    for stage in ends.values():  # the last of a source
        name = f"{stage.source}, {stage.texts} texts"
        yield from examples(name, before, stage.answers, material.settings.score)
