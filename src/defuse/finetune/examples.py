"""Examples for fine-tuning: texts as token ids with labels, in batches of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from defuse.data.text import Text, encode
from defuse.utils.random import generator

IGNORED = -100  # the label that transformers' losses leave out
WINDOW = 32  # number of batches whose examples are sorted by length together


@dataclass(frozen=True)
class Example:
    """`ids`: a text's tokens; the loss counts those from index `start` on."""

    ids: tuple[int, ...]
    start: int


def make_examples(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[Example]:
    """Texts followed by the end-of-text token, truncated to `length` tokens.

    The loss counts the answer of a question-answer pair and the end-of-text token (as in TOFU's
    data_module.py), and all tokens of any other text. Raises UsageError if no token is left.
    """
    eos = tokenizer.eos_token_id
    end = (eos,) if isinstance(eos, int) else ()
    encoded = encode(texts, tokenizer, length)
    return [Example((*text.ids, *end)[:length], text.answer_start) for text in encoded]


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
