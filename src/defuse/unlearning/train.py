"""The training loop of unlearning: topics alternate, AdamW updates the trained tensors."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model, sharing_copy
from defuse.models.fsdp import check_sharding, shard_blocks
from defuse.models.lora import FACTOR, add_factors, factors
from defuse.unlearning.activation_cache import ActivationCache, BucketCache
from defuse.unlearning.batches import Collate, StepBatches
from defuse.unlearning.cautions import about_strength
from defuse.unlearning.checkpoint import SavedState
from defuse.unlearning.config import (
    Topic,
    Training,
    Unlearning,
    modules_to_adapt,
    trained_parameters,
    validate,
)
from defuse.unlearning.defaults import with_defaults
from defuse.unlearning.length_buckets import first_tokens, length_buckets
from defuse.unlearning.objective import Objective, make_objectives
from defuse.unlearning.optimiser import make_adamw, take_step
from defuse.unlearning.reference import ReferenceModel
from defuse.unlearning.step import SharedPrefixStep, StepLosses
from defuse.unlearning.tokenized import encode_topics
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError, caution, require
from defuse.utils.prefetch import prefetch
from defuse.utils.progress import SILENT, Progress

if TYPE_CHECKING:
    from peft import PeftModel

CACHED_STATES = 2  # per token at most: before the first trained block, and at the layer


@dataclass(frozen=True)
class StepRecord:
    """One step: its losses before the update, and how long it took."""

    step: int
    topic: str
    forget_loss: float
    retain_loss: float
    seconds: float

    @property
    def losses(self) -> str:
        """The losses as a progress bar shows them."""
        return f"{self.topic}: forget {self.forget_loss:.4g}, retain {self.retain_loss:.4g}"


@dataclass(frozen=True)
class Result:
    """The unlearned `model`; tensors that were not trained are shared with the caller's model.

    `changed`: the trained tensors by name, in the model's dtype. With LoRA these are its factors,
    and `adapter` is the peft model around `model`; with `merge` they are the matrices.
    """

    model: PreTrainedModel
    changed: Mapping[str, Tensor]
    records: Sequence[StepRecord]
    adapter: "PeftModel | None" = None


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
    saved: SavedState | None = None,
    cache: ActivationCache | None = None,
    processes: Processes = ALONE,
    shard_on: torch.device | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Unlearn `topics` from `model`.

    `model` is left unchanged (parameters, gradients, training mode) unless `in_place`. `on_step`
    receives the record of every step. `on_checkpoint` receives the number of steps done and the
    model at that point, after each number of steps in `checkpoints`. `saved`: where the state is
    saved, and resumed from. `cache`: holds the frozen model's results, to share between runs on one
    model. `processes` share each step's texts; `shard_on` (experimental) also spreads the frozen
    blocks over their devices of this kind. Raises UsageError for settings that are impossible, and
    when a loss is no longer finite.
    """
    training = training or Training()
    _check_kinds(topics, unlearning, training)
    decoder = Decoder(model)
    topics = [with_defaults(topic, unlearning.method, unlearning.retain) for topic in topics]
    validate(unlearning, topics, decoder)
    _check_loaded(decoder, unlearning)
    if shard_on is not None:
        check_sharding(processes, training.batch_size)
    encoded = encode_topics(decoder, unlearning, tokenizer, topics, training)
    with frozen_model(model):
        trained = _trainable(model, unlearning, training.seed, in_place=in_place)
        decoder = Decoder(trained.model, recompute=training.recompute)
        if shard_on is not None:
            shard_blocks(decoder, trained.originals.values(), processes, shard_on)
        weights = _start_weights(trained.originals, master_weights=unlearning.master_weights)
        collate = Collate.of(unlearning, tokenizer, decoder.device)
        batches = StepBatches(encoded, training, collate, processes)
        reference = ReferenceModel(decoder, unlearning.layers(decoder.num_layers)[0])
        objectives = make_objectives(reference, unlearning, batches)
        for objective in objectives:
            for sentence in about_strength(objective, unlearning.method):
                caution(sentence)
        if shard_on is None:  # else all processes must run the same blocks at the same time
            reference = _with_cache(reference, unlearning, batches, cache)
        step = SharedPrefixStep(
            reference, unlearning, weights, seed=training.seed, processes=processes
        )
        progress.start("unlearning", training.steps)
        records: list[StepRecord] = []
        for record in _loop(step, objectives, batches, saved):
            records.append(record)
            progress.advance(1, record.losses)
            if on_step is not None:
                on_step(record)
            if on_checkpoint is not None and len(records) in checkpoints:
                on_checkpoint(len(records), _with_weights(trained, weights))
    own = in_place or trained.adapter is not None
    updated = _with_weights(trained, weights, in_place=own)
    changed = {name: updated.get_parameter(name).detach() for name in weights}
    if trained.adapter is not None and unlearning.lora is not None and unlearning.lora.merge:
        return _merged(trained.adapter, changed, records)
    return Result(updated, changed, tuple(records), trained.adapter)


def _check_kinds(topics: object, unlearning: object, training: object) -> None:
    is_list = isinstance(topics, Sequence) and all(isinstance(each, Topic) for each in topics)
    require(is_list, "topics", topics, "is no list of Topics; give one")
    for name, value, kind in (
        ("unlearning", unlearning, Unlearning),
        ("training", training, Training),
    ):
        require(isinstance(value, kind), name, value, f"is no {kind.__name__}; give one")


def _check_loaded(decoder: Decoder, unlearning: Unlearning) -> None:
    """Raise UsageError for a model loaded in part (`load_part`) whose missing blocks are needed."""
    stop = unlearning.layer + 1 if unlearning.ends_at_layer else decoder.num_layers
    parts = decoder.parts(stop)
    if any(tensor.is_meta for part in parts for tensor in part.parameters()):
        raise UsageError(
            f"model: is loaded in part, but these losses need blocks 0 to {stop - 1}; load them all"
        )


@dataclass(frozen=True)
class _Trainable:
    """The model to work on, and the tensors to train with their values before unlearning."""

    model: PreTrainedModel
    originals: Mapping[str, nn.Parameter]
    adapter: "PeftModel | None" = None


def _trainable(
    model: PreTrainedModel, unlearning: Unlearning, seed: int, *, in_place: bool
) -> _Trainable:
    decoder = Decoder(model)
    if unlearning.lora is None:
        return _Trainable(model, trained_parameters(decoder, unlearning))
    modules = modules_to_adapt(decoder, unlearning)
    if not in_place:
        # The copy has its own matrices: merging the adapter must not change the caller's.
        model = sharing_copy(model, [p for m in modules.values() for p in m.parameters()])
    adapter = add_factors(model, modules, unlearning.lora, seed)
    return _Trainable(model.requires_grad_(False), factors(model), adapter)


def _merged(
    adapter: "PeftModel", factors: Mapping[str, Tensor], records: Sequence[StepRecord]
) -> Result:
    """The result with LoRA's factors added to their matrices, in place."""
    modules = {name.partition(FACTOR)[0] for name in factors}
    model = adapter.merge_and_unload()
    changed = {f"{n}.weight": model.get_parameter(f"{n}.weight").detach() for n in sorted(modules)}
    return Result(model, changed, tuple(records))


def _with_cache(
    reference: ReferenceModel,
    unlearning: Unlearning,
    batches: StepBatches,
    cache: ActivationCache | None,
) -> ReferenceModel:
    """`reference` with a cache, if any text repeats, in this run or in another one."""
    # Where padding counts, a text's hidden states depend on the length of its batch.
    if not unlearning.mask_padding or (cache is None and not batches.repeat_texts):
        return reference
    buckets, activations = length_buckets(batches), cache or ActivationCache()
    width = reference.decoder.hidden_size * reference.decoder.model.dtype.itemsize
    tokens = int(batches.training.keep_gib * 2**30) // (CACHED_STATES * width)
    return replace(
        reference,
        hidden_cache=BucketCache(first_tokens(buckets, tokens), activations),
        log_prob_cache=BucketCache(buckets, activations),
    )


def _loop(
    step: SharedPrefixStep,
    objectives: Sequence[Objective],
    batches: StepBatches,
    saved: SavedState | None,
) -> Iterator[StepRecord]:
    training = batches.training
    optimiser = make_adamw(step.weights.values(), training.learning_rate)
    done = [] if saved is None else saved.restore(step.weights, optimiser)
    yield from (StepRecord(**record) for record in done)
    first, remaining = len(done), range(len(done), training.steps)
    for index, batch in zip(remaining, prefetch(batches.batch, remaining), strict=True):
        began = time.perf_counter()
        objective = objectives[batches.topic_of(index)]
        losses = step.backward(objective, batch, index)
        if index == first:
            _check_gradients(step.weights)
        share = training.optimiser.rate_share(index + 1, training.steps)
        take_step(optimiser, training.optimiser, index + 1, share * training.learning_rate)
        forget, retain = _finite(losses, index)
        record = StepRecord(index, objective.name, forget, retain, time.perf_counter() - began)
        done.append(asdict(record))
        if saved is not None and step.processes.is_first and saved.is_due(index + 1):
            saved.save(step.weights, optimiser, done)
        yield record


def _check_gradients(weights: Mapping[str, Tensor]) -> None:
    """Raise UsageError for a trained tensor that no loss reaches: it would never change.

    A gradient may be 0 at first, such as that of LoRA's A while B = 0, but none may be missing.
    """
    missing = [name for name, tensor in weights.items() if tensor.grad is None]
    if missing:
        raise UsageError(
            f"train: {missing[0]} and {len(missing) - 1} more get no gradient from these losses; "
            "name other layers or parameters"
        )


def _finite(losses: StepLosses, step: int) -> tuple[float, float]:
    forget, retain = torch.stack([losses.forget.float(), losses.retain.float()]).tolist()
    if not (math.isfinite(forget) and math.isfinite(retain)):
        raise UsageError(
            f"learning_rate: at step {step} the losses became {forget} (forget) and {retain} "
            "(retain); lower learning_rate, or the topic's weight or coefficient"
        )
    return forget, retain


def _start_weights(originals: Mapping[str, Tensor], *, master_weights: bool) -> dict[str, Tensor]:
    """Copies to train, in float32 if the model is in half precision and `master_weights` is set.

    In bfloat16 a step of 5e-5 does not change any weight above about 0.016.
    """
    halves = (torch.float16, torch.bfloat16)
    return {
        name: tensor.detach()
        .to(torch.float32 if master_weights and tensor.dtype in halves else tensor.dtype, copy=True)
        .requires_grad_()
        for name, tensor in originals.items()
    }


def _with_weights(
    trainable: _Trainable, weights: Mapping[str, Tensor], *, in_place: bool = False
) -> PreTrainedModel:
    """The model with `weights` in it: the same model, or a copy that shares all other tensors."""
    model = trainable.model
    if not in_place:
        model = sharing_copy(model, trainable.originals.values())
    with torch.no_grad():
        for name, tensor in weights.items():
            model.get_parameter(name).copy_(tensor)
    return model
