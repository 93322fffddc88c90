"""What a run will read, train and write, and the memory and time it takes, before it starts."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from defuse.methods import HiddenMSE, RepresentationMethod
from defuse.models.decoder import Decoder
from defuse.models.safetensors_index import Checkpoint
from defuse.unlearning.config import Training, Unlearning, trained_parameters
from defuse.unlearning.tokenized import Corpus, EncodedTopic
from defuse.utils.errors import UsageError
from defuse.utils.progress import duration
from defuse.utils.speed import matrix_speed

STATES = 2  # kept on the disk
ADAM_BYTES = 16  # a trained value: itself, its gradient and two moments in float32
STATE_BYTES = 12  # a trained value in a saved state: itself and two moments in float32
# The share of a large matrix product's speed that a step reaches (docs/performance.md: 0.75).
EFFICIENCY = 0.6


@dataclass(frozen=True)
class Forecast:
    """`memory` and `disk` in bytes: weights with the optimiser, and all that is written.

    `read`: parameters that are loaded. `trained`: parameters that change. `flops`: floating-point
    operations of one step, about. `texts`: forget and retain texts of each topic by name. `dtype`:
    of the model.
    """

    read: int
    trained: int
    memory: int
    disk: int
    flops: float
    steps: int
    texts: Sequence[tuple[str, int, int]]
    dtype: torch.dtype

    def lines(self, device: torch.device) -> Iterator[str]:
        """The forecast in words; the time is that of this machine, which is measured."""
        for name, forget, retain in self.texts:
            yield f"reads: topic {name} with {forget} forget and {retain} retain texts"
        yield f"loads: {_count(self.read)} parameters"
        yield f"trains: {_count(self.trained)} parameters for {self.steps} steps"
        yield f"writes: about {size(self.disk)}, saved states included"
        yield f"memory: about {size(self.memory)}, and the activations of a batch"
        seconds = self.steps * self.flops / (EFFICIENCY * matrix_speed(device, self.dtype))
        yield f"time: {duration(seconds)} of training on this machine"


def make_forecast(
    decoder: Decoder,
    unlearning: Unlearning,
    training: Training,
    topics: Sequence[EncodedTopic],
    checkpoint: Checkpoint | None,
    *,
    saves_states: bool,
) -> Forecast:
    """Forecast a run; `decoder` may be without weights. `checkpoint`: files changed in place."""
    whole = sum(p.numel() for p in decoder.model.parameters())
    partly = unlearning.ends_at_layer and checkpoint is not None
    loaded = decoder.parts(unlearning.layer + 1) if partly else [decoder.model]
    read = sum({id(p): p.numel() for part in loaded for p in part.parameters()}.values())
    trained = _trained(decoder, unlearning)
    itemsize = decoder.model.dtype.itemsize
    output = _output_bytes(decoder, unlearning, checkpoint, whole * itemsize)
    return Forecast(
        read=read,
        trained=trained,
        memory=read * itemsize + trained * ADAM_BYTES,
        disk=output + (STATES * STATE_BYTES * trained if saves_states else 0),
        flops=step_flops(decoder, unlearning, _mean_tokens(topics, training)),
        steps=training.steps,
        texts=[(t.topic.name, len(t.topic.forget), len(t.topic.retain)) for t in topics],
        dtype=decoder.model.dtype,
    )


def check_space(forecast: Forecast, output: Path) -> None:
    """Raise UsageError where what the run writes would not fit."""
    place = next(each for each in (output, *output.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    if free < forecast.disk:
        raise UsageError(
            f"output: {output} takes about {size(forecast.disk)} with its saved states, but only "
            f"{size(free)} are free in {place}; make room, or name another place"
        )


def step_flops(decoder: Decoder, unlearning: Unlearning, tokens: tuple[float, float]) -> float:
    """Floating-point operations of a step with so many forget and retain tokens, about.

    A token costs 2 a parameter on the way up, and 4 on the way down through the trained blocks and
    those above them, up to the last block that the loss looks at.
    """
    steers = isinstance(unlearning.method, RepresentationMethod)
    stops = isinstance(unlearning.retain, HiddenMSE)
    first = min(unlearning.layers(decoder.num_layers))
    block = sum(p.numel() for p in decoder.blocks[0].parameters())
    head = decoder.hidden_size * decoder.vocab_size

    def work(count: float, *, to_layer: bool, models: int) -> float:
        blocks = (unlearning.layer + 1 if to_layer else decoder.num_layers) - first
        top = 0 if to_layer else head
        return count * (2 * first * block + (2 * models + 4) * (blocks * block + top))

    needs_reference = 2 if unlearning.method.needs_reference else 1
    return work(tokens[0], to_layer=steers, models=needs_reference) + work(
        tokens[1], to_layer=stops, models=2
    )


def size(count: float) -> str:
    """Bytes in words: "270 MB", "9.3 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


def _trained(decoder: Decoder, unlearning: Unlearning) -> int:
    found = trained_parameters(decoder, unlearning).values()
    if unlearning.lora is None:
        return sum(tensor.numel() for tensor in found)
    matrices = [tensor for tensor in found if tensor.dim() == 2]
    return unlearning.lora.rank * sum(sum(matrix.shape) for matrix in matrices)


def _output_bytes(
    decoder: Decoder, unlearning: Unlearning, checkpoint: Checkpoint | None, whole: int
) -> int:
    """Bytes of the files with a changed tensor: the others are shared with the old ones."""
    if unlearning.lora is not None and not unlearning.lora.merge:
        return 0
    if checkpoint is None:
        return whole
    names = trained_parameters(decoder, unlearning)
    files = {checkpoint.entries[name].file for name in names if name in checkpoint.entries}
    return sum((checkpoint.folder / file).stat().st_size for file in files)


def _mean_tokens(topics: Sequence[EncodedTopic], training: Training) -> tuple[float, float]:
    """A step's forget (with refusals) and retain tokens, over all topics."""

    def mean(corpora: Sequence[Corpus | None]) -> float:
        lengths = [len(text.ids) for c in corpora if c is not None for text in c.texts.values()]
        return fmean(lengths) if lengths else 0.0

    forget, refusals = mean([t.forget for t in topics]), mean([t.refusals for t in topics])
    retain = mean([topic.retain for topic in topics])
    return training.batch_size * (forget + refusals), training.batch_size * retain
