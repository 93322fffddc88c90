"""Relearning: how fast does fine-tuning bring the knowledge back (2402.16835, 2406.13356)?

A copy is trained on k texts of the forget set, or on texts that have nothing to do with it
(2409.18025: ten of them undo RMU), and is asked during the training. Knowledge that is really gone
comes back no faster than a retrained model, which never saw it, learns it from the same texts.
"""

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

from defuse.attacks.data import AttackData, ask_all, outcomes_of, stored
from defuse.attacks.findings import Findings
from defuse.attacks.relearn.config import Relearning
from defuse.attacks.relearn.tables import Checkpoint, against_texts, beside_retrained, curves
from defuse.attacks.relearn.training import TrainedCopy, TrainingOptions
from defuse.attacks.results import Condition, Example, Result, condition, examples
from defuse.data.text import Encoded, encode
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.models.load import require_plain_weights
from defuse.models.lora import adapted_modules, check_rank
from defuse.utils.distribution import install_hint
from defuse.utils.errors import UsageError, require
from defuse.utils.progress import SILENT, Progress
from defuse.utils.random import generator

NAME = "relearn"
PREFIXES = {"model": "", "retrained": "retrained, "}  # of the names of conditions and findings


def check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Relearning,
    *,
    retrained: PreTrainedModel | None = None,
) -> None:
    """Raise UsageError for what the attack refuses, without reading weights.

    That is missing texts, texts without a token to predict, float16, quantised weights that would
    be trained, and LoRA without peft.
    """
    prepare(model, tokenizer, data, config, retrained)


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Relearning,
    retrained: PreTrainedModel | None,
) -> tuple[dict[str, PreTrainedModel], dict[str, list[Encoded]]]:
    """Return the models by name, and the texts by source. Raises UsageError as `check` does."""
    models = {"model": model} if retrained is None else {"model": model, "retrained": retrained}
    for each in models.values():
        _check_trainable(each, config)
    return models, encode_texts(model, tokenizer, data, config)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Relearning | None = None,
    *,
    retrained: PreTrainedModel | None = None,
    findings: Findings | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Ask `model` before training, and copies of it that are trained on k texts of each source.

    `retrained`, which never saw the forget set, is trained on the same texts in the same order. If
    there are fewer than k texts, all are taken, and a condition says how many were wanted
    ("texts_wanted"). Raises UsageError as `check` does, and for a loss that is not finite.
    """
    config, findings = config or Relearning(), findings or Findings()
    models, texts = prepare(model, tokenizer, data, config, retrained)
    findings.report_to(progress, NAME, _pieces(models, texts, data, config))
    checkpoints: dict[str, list[Checkpoint]] = {}
    with ExitStack() as stack:
        stack.enter_context(findings.counting(*models.values()))
        for each in models.values():
            stack.enter_context(frozen_model(each))
        for name, each in models.items():
            trainer = _Trainer(each, tokenizer, data, config, findings, PREFIXES[name])
            checkpoints[name] = list(trainer.checkpoints(texts))
    conditions = [
        found
        for name, some in checkpoints.items()
        for found in _conditions(PREFIXES[name], some, config)
    ]
    return Result(
        NAME,
        asdict(config),
        conditions,
        findings.cost,
        list(_examples(checkpoints["model"], data)),
        curves(checkpoints),
        [] if retrained is None else beside_retrained(**checkpoints),
    )


def _pieces(
    models: Mapping[str, PreTrainedModel],
    texts: Mapping[str, Sequence[Encoded]],
    data: AttackData,
    config: Relearning,
) -> int:
    """The number of findings: for each model the answers before, and one at each checkpoint."""
    trainings = sum(len(sizes(config.texts, len(each))) for each in texts.values())
    return len(models) * (len(data.sets) + trainings * len(config.asked_at))


def _check_trainable(model: PreTrainedModel, config: Relearning) -> None:
    remedy = "lets small gradients vanish in training: use bfloat16 or float32"
    require(model.dtype != torch.float16, "dtype", "float16", remedy)
    if config.lora is not None:
        decoder = Decoder(model)
        modules = adapted_modules(decoder, range(decoder.num_layers), None)
        check_rank(modules, config.lora, "relearn.lora")
    else:
        require_plain_weights(model, "relearn.lora", "give a rank, or the model as it was before")


def encode_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Relearning,
) -> dict[str, list[Encoded]]:
    """Return the most texts that any training takes of each source, in drawn order, as token ids.

    A training on fewer takes the first of them. Raises UsageError as `check` does.
    """
    check_installed(config)
    reads = Decoder(model).max_positions
    length = config.length if reads is None else min(config.length, reads)
    encoded = {}
    for source in dict.fromkeys(config.source):
        drawn = _draw(data.given_texts(source), source, config)
        try:
            encoded[source] = encode(drawn, tokenizer, length)
        except UsageError as error:
            raise UsageError(f"{source}_texts: {error}") from error
    return encoded


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
            f"{source}_texts: there are none to train on; give --{source}-texts FILE, or leave the "
            "source out (the questions themselves would give their answers away)"
        )
    order = torch.randperm(len(texts), generator=generator(config.seed, "relearn", source))
    return [texts[int(row)] for row in order[:most]]


@dataclass(frozen=True)
class _Trainer:
    """One model, of which copies are trained; `prefix` begins the names of its findings."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: AttackData
    config: Relearning
    findings: Findings
    prefix: str

    def checkpoints(self, texts: Mapping[str, Sequence[Encoded]]) -> Iterator[Checkpoint]:
        """By source and number of texts: before training, and during each training."""
        name = f"{self.prefix}before"
        before = ask_all(self.model, self.tokenizer, self.data, self.findings, name)
        for source, encoded in texts.items():
            yield Checkpoint(source, 0, 0, None, before)
            for size in sizes(self.config.texts, len(encoded)):
                yield from self._train(source, encoded[:size])

    def _train(self, source: str, texts: Sequence[Encoded]) -> Iterator[Checkpoint]:
        """Train a copy on `texts`, and ask it at every checkpoint whose answers are missing.

        A resumed attack trains from the start again, as far as is needed, without counting it.
        """
        config = self.config
        options = TrainingOptions(
            config.batch_size, config.learning_rate, config.lora, config.recompute, config.seed
        )
        copy = TrainedCopy(self.model, texts, options, f"{source}/{len(texts)}")
        for done, steps in pairwise([0, *config.asked_at]):
            name = f"{self.prefix}{source}, {len(texts)} texts, {steps} steps"
            if name not in self.findings:
                copy.after(done)  # these steps were counted before the interruption
            found = self.findings.get_or_compute(name, partial(self._ask, copy, done, steps))
            answers = {
                each: outcomes_of(questions, found["answers"][each])
                for each, questions in self.data.sets.items()
            }
            yield Checkpoint(source, len(texts), steps, found["loss"], answers)

    def _ask(self, copy: TrainedCopy, done: int, steps: int) -> dict[str, Any]:
        """The mean loss since step `done`, and all answers, as JSON values."""
        trained = copy.after(steps)
        asked = ask_all(trained, self.tokenizer, self.data, Findings(), "after")
        return {
            "loss": fmean(copy.losses[done:steps]),
            "answers": {each: stored(outcomes) for each, outcomes in asked.items()},
        }


def sizes(wanted: Sequence[int], available: int) -> list[int]:
    """The numbers of texts to train on if so many are available, rising, each once."""
    return sorted({min(texts, available) for texts in wanted if texts > 0})


def _conditions(
    prefix: str, checkpoints: Sequence[Checkpoint], config: Relearning
) -> Iterator[Condition]:
    """Untrained if 0 texts are wanted, and the end of each training.

    A training of the attacked model is a headline; one of the retrained model is there to compare.
    """
    before = checkpoints[0].answers
    if 0 in config.texts:
        numbers = {"texts": 0, "steps": 0}
        name = f"{prefix}0 texts"
        yield condition(name, before, before, config.seed, numbers, headline=False)
    for each in against_texts(checkpoints):
        if each.loss is not None:
            name = f"{prefix}{each.source}, {each.texts} texts"
            numbers = {"texts": each.texts, "steps": each.steps, "loss": each.loss}
            if each.texts not in config.texts:
                numbers["texts_wanted"] = min(k for k in config.texts if k > each.texts)
            headline = not prefix
            yield condition(name, before, each.answers, config.seed, numbers, headline=headline)


def _examples(checkpoints: Sequence[Checkpoint], data: AttackData) -> Iterator[Example]:
    """Answers changed by the training on the most texts of each source."""
    before, ends = checkpoints[0].answers, {each.source: each for each in checkpoints}
    for each in ends.values():  # the last of a source
        name = f"{each.source}, {each.texts} texts"
        yield from examples(name, before, each.answers, data.settings.score)
