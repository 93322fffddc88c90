"""The one loop: topics in turn, the shared-prefix step, AdamW."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.borrowed import frozen_model
from defuse.decoder import Decoder
from defuse.defaults import with_defaults
from defuse.engine import FrozenStore, SharedPrefixStep, StepLosses
from defuse.errors import UsageError
from defuse.prepare import Prepared, prepare
from defuse.unlearning import Topic, Training, Unlearning, trained_parameters, validate


@dataclass(frozen=True)
class StepRecord:
    """One step's losses (before its update) and how long it took."""

    step: int
    topic: str
    forget_loss: float
    retain_loss: float
    seconds: float


@dataclass(frozen=True)
class Result:
    """`model`: the unlearned model; untouched tensors are shared with the caller's.

    `changed`: the trained tensors by name, in the model's dtype.
    """

    model: PreTrainedModel
    changed: Mapping[str, Tensor]
    records: Sequence[StepRecord]


def unlearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    topics: Sequence[Topic],
    unlearning: Unlearning,
    training: Training | None = None,
    *,
    in_place: bool = False,
    on_step: Callable[[StepRecord], None] | None = None,
    checkpoints: Collection[int] = (),
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None = None,
) -> Result:
    """Unlearn `topics` from `model`.

    `model` is left as found (parameters, gradients, training mode) unless `in_place`. `on_step`
    hears of every step; `on_checkpoint` gets the number of steps done and the model as it then is,
    after each number of steps in `checkpoints`. Raises UsageError for settings that cannot be, and
    when a loss is no longer finite.
    """
    training = training or Training()
    decoder = Decoder(model)
    topics = [with_defaults(topic, unlearning) for topic in topics]
    validate(unlearning, topics, training, decoder)
    originals = trained_parameters(decoder, unlearning)
    weights = _start_weights(originals, master_weights=unlearning.master_weights)
    records: list[StepRecord] = []
    with frozen_model(model):
        step = SharedPrefixStep(decoder, unlearning, weights, seed=training.seed)
        prepared = prepare(step, tokenizer, topics, training)
        # Where padding counts, what a text gives depends on the batch it stands in.
        if prepared.texts_come_again and unlearning.mask_padding:
            step.store = FrozenStore(int(training.keep_gib * 2**30))
        for record in _loop(step, prepared, training):
            records.append(record)
            if on_step is not None:
                on_step(record)
            if on_checkpoint is not None and len(records) in checkpoints:
                on_checkpoint(len(records), _with_weights(model, originals, weights))
    updated = _with_weights(model, originals, weights, in_place=in_place)
    changed = {name: updated.get_parameter(name).detach() for name in originals}
    return Result(updated, changed, tuple(records))


def _loop(step: SharedPrefixStep, prepared: Prepared, training: Training) -> Iterator[StepRecord]:
    optimiser = torch.optim.AdamW(
        step.weights.values(), lr=training.learning_rate, weight_decay=0.0, fused=True
    )
    for index in range(training.steps):
        began = time.perf_counter()
        objective, batch = prepared.batch(index)
        losses = step.backward(objective, batch, index)
        optimiser.step()
        optimiser.zero_grad()
        forget, retain = _finite(losses, index)
        yield StepRecord(index, objective.name, forget, retain, time.perf_counter() - began)


def _finite(losses: StepLosses, step: int) -> tuple[float, float]:
    forget, retain = torch.stack([losses.forget.float(), losses.retain.float()]).tolist()
    if not (math.isfinite(forget) and math.isfinite(retain)):
        raise UsageError(
            f"learning_rate: at step {step} the losses became {forget} (forget) and {retain} "
            "(retain); lower learning_rate, or the topic's weight or coefficient"
        )
    return forget, retain


def _start_weights(originals: Mapping[str, Tensor], *, master_weights: bool) -> dict[str, Tensor]:
    """Copies to train: in float32 if the model is in half precision, unless told otherwise.

    In bfloat16 a step of 5e-5 leaves every weight above about 0.016 as it was.
    """
    halves = (torch.float16, torch.bfloat16)
    return {
        name: tensor.detach()
        .to(torch.float32 if master_weights and tensor.dtype in halves else tensor.dtype, copy=True)
        .requires_grad_()
        for name, tensor in originals.items()
    }


def _with_weights(
    model: PreTrainedModel,
    originals: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    in_place: bool = False,
) -> PreTrainedModel:
    """`model` with `weights` in it: itself, or a copy that shares every other tensor."""
    if not in_place:
        trained = {id(tensor) for tensor in originals.values()}
        shared = [*model.parameters(), *model.buffers()]
        model = deepcopy(model, {id(t): t for t in shared if id(t) not in trained})
    with torch.no_grad():
        for name, tensor in weights.items():
            model.get_parameter(name).copy_(tensor)
    return model
