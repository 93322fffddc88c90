"""Batches of examples for fine-tuning: examples of similar length, as tensors with labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from defuse.data.examples import Example
from defuse.models.rotary import LengthClasses
from defuse.utils.errors import UsageError
from defuse.utils.random import generator

IGNORED = -100  # the label that transformers' losses leave out
WINDOW = 32  # number of batches whose examples are sorted by length together


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Every example once, in batches of about equal size (at most `batch_size`) and similar length.

    The order is drawn from (seed, epoch) alone. Within windows of `WINDOW` batches examples are
    sorted by length, to save padding; the order of the batches is then drawn.
    """
    rng = generator(seed, "order", "finetune", epoch)
    drawn = torch.randperm(len(lengths), generator=rng).tolist()
    window = WINDOW * batch_size
    windows = (drawn[at : at + window] for at in range(0, len(drawn), window))
    alike = [place for some in windows for place in sorted(some, key=lengths.__getitem__)]
    batches = torch.tensor(alike).tensor_split(-(-len(alike) // batch_size))
    turn = torch.randperm(len(batches), generator=rng).tolist()
    return [batches[index].tolist() for index in turn]


def check_lengths(examples: Sequence[Example], config: PreTrainedConfig) -> None:
    """Raise UsageError for texts whose rotary factors padding in a batch would change."""
    classes = LengthClasses.of(config)
    longest = max(len(example.ids) for example in examples)
    if classes.representative(longest):
        raise UsageError(
            f"length: the longest text has {longest} tokens, but above {classes.shortest} this "
            "model has other rotary factors, which a batch would mix; lower length to "
            f"{classes.shortest}"
        )


def collate(examples: Sequence[Example], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, (batch, time), padded on the right."""
    time = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), time), pad_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        end = len(example.ids)
        ids[row, :end] = torch.tensor(example.ids)
        mask[row, :end] = 1
        labels[row, example.start : end] = ids[row, example.start : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
