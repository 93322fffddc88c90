"""Fine-tuning of a copy of the model, a few steps at a time: next-token loss, plain AdamW.

A copy shares with the caller's model every tensor that is not trained. Dropout is off. LoRA's
factors and the order of the texts have generators of their own; nothing else is random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from defuse.data.collate import TextBatch, collate
from defuse.data.sampling import rows
from defuse.data.text import Encoded
from defuse.losses.tokens import next_token_log_probs
from defuse.models.decoder import Decoder
from defuse.models.freeze import sharing_copy
from defuse.models.lm_head import chunks
from defuse.models.lora import LoRA, adapted_modules, add_factors
from defuse.utils.errors import UsageError
from defuse.utils.precision import upcast

ALPHA = 16.0  # of LoRA, whatever its rank (2409.18025, code)


@dataclass(frozen=True)
class TrainingOptions:
    """How a copy is trained; `lora` is the rank of the factors, None trains every weight."""

    batch_size: int
    learning_rate: float
    lora: int | None
    recompute: bool
    seed: int


class TrainedCopy:
    """A copy of `model` that is trained on `texts` as far as it is asked to.

    Batches are drawn from (seed, purpose), so that another model gets the same texts in the same
    order. The copy is made when it is first needed. The caller's model must be frozen while it is
    used (`frozen_model`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        texts: Sequence[Encoded],
        options: TrainingOptions,
        purpose: str,
    ) -> None:
        self.losses: list[float] = []  # for each step, in nats per token
        self._original = model
        self._texts = texts
        self._options = options
        self._purpose = purpose

    def after(self, steps: int) -> PreTrainedModel:
        """Return the copy after `steps` steps, which must not be fewer than before."""
        assert len(self.losses) <= steps  # noqa: S101
        while len(self.losses) < steps:
            self.losses.append(self._step(len(self.losses)))
        return self._model

    @cached_property
    def _model(self) -> PreTrainedModel:
        if self._options.lora is None:
            copy = sharing_copy(self._original, self._original.parameters())
            return copy.requires_grad_(True)
        copy, decoder = sharing_copy(self._original, []), Decoder(self._original)
        modules = adapted_modules(decoder, range(decoder.num_layers), None)
        lora = LoRA(self._options.lora, ALPHA)
        add_factors(copy, modules, lora, self._options.seed)
        return copy

    @cached_property
    def _weights(self) -> "MasterWeights":
        trained = [tensor for tensor in self._model.parameters() if tensor.requires_grad]
        return MasterWeights(trained, self._options.learning_rate)

    def _step(self, step: int) -> float:
        decoder = Decoder(self._model, recompute=self._options.recompute)
        weights = self._weights
        loss = next_token_loss(decoder, self._batch(step))
        if not math.isfinite(value := loss.item()):
            raise UsageError(
                f"relearn.learning_rate: at step {step + 1} the loss became {value}; lower it"
            )
        loss.backward()
        weights.update()
        return value

    def _batch(self, step: int) -> TextBatch:
        size, seed = self._options.batch_size, self._options.seed
        chosen = rows(step, len(self._texts), size, seed=seed, shuffle=True, purpose=self._purpose)
        items = [(self._purpose, row) for row in chosen]
        texts = [self._texts[row] for row in chosen]
        return collate(texts, items, pad_token_id=0, device=self._original.device)


class MasterWeights:
    """AdamW without weight decay on float32 copies of tensors in half precision.

    In bfloat16 itself, a small step would not change most weights.
    """

    def __init__(self, trained: Sequence[Tensor], learning_rate: float) -> None:
        self._trained = trained
        self._masters = [upcast(tensor.detach()) for tensor in trained]
        self._optimiser = torch.optim.AdamW(
            self._masters, lr=learning_rate, weight_decay=0.0, fused=True
        )

    @torch.no_grad()
    def update(self) -> None:
        """Take a step with the gradients of the trained tensors, and clear them."""
        pairs = list(zip(self._trained, self._masters, strict=True))
        for tensor, master in pairs:
            master.grad = None if tensor.grad is None else upcast(tensor.grad)
            tensor.grad = None
        self._optimiser.step()
        self._optimiser.zero_grad()
        for tensor, master in pairs:
            tensor.copy_(master)  # onto itself unless it is in half precision


def next_token_loss(decoder: Decoder, batch: TextBatch) -> Tensor:
    """Mean of -log p(token) over all tokens of a batch but the first of each text, in nats.

    Gradients reach every weight. The head runs on a few tokens at a time, and again in the backward
    pass, so that no tensor of (batch, time, vocabulary) is ever stored.
    """
    hidden, inputs = decoder.embed(batch.input_ids, batch.attention_mask, batch.lengths)
    hidden = decoder.run(hidden, inputs, 0, decoder.num_layers)
    predicting = hidden.flatten(0, 1)[batch.predicted_at]

    def score(some: Tensor, labels: Tensor) -> Tensor:
        return next_token_log_probs(decoder.logits(some), labels)

    size = chunks(len(predicting), decoder.vocab_size)[0].stop
    values = [
        checkpoint(score, some, labels, use_reentrant=False, preserve_rng_state=False)
        for some, labels in zip(predicting.split(size), batch.labels.split(size), strict=True)
    ]
    return -torch.cat(values).mean()
