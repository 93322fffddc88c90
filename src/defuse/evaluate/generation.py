"""Greedy continuations of prompts."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from transformers import GenerationConfig

from defuse.data.given import given_strings
from defuse.data.token_ids import prefix_token
from defuse.evaluate.encoding import encode_text
from defuse.evaluate.loglikelihood import max_length
from defuse.models.load import LoadedModel
from defuse.models.rotary import LengthClasses
from defuse.utils.progress import SILENT, Progress

NEW_TOKENS = 48
BATCH_SIZE = 32  # prompts


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    new_tokens: int = NEW_TOKENS,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = SILENT,
) -> list[str]:
    """The most likely continuation of each prompt, at most `new_tokens` tokens, greedily.

    Prompts of similar length form a batch, padded on the left. A prompt that is too long for the
    model is cut on the left. `progress` advances by the prompts of each batch; the caller starts
    its stage.
    """
    prompts = given_strings(prompts, "prompts")
    room = max(1, max_length(loaded.model, loaded.tokenizer) - new_tokens)
    encoded = [encode_text(prompt, loaded.tokenizer)[-room:] for prompt in prompts]
    vary = LengthClasses.of(loaded.model.config).vary
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    texts = [""] * len(prompts)
    # Rotary factors that depend on the length must not come from a longer prompt of the batch.
    alike = groupby(order, key=lambda index: len(encoded[index]) if vary else 0)
    for batch in (batch for _, some in alike for batch in _slices(list(some), batch_size)):
        written = _write([encoded[index] for index in batch], loaded, new_tokens)
        for index, text in zip(batch, written, strict=True):
            texts[index] = text
        progress.advance(len(batch))
    return texts


def _slices(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))


def _write(prompts: Sequence[Sequence[int]], loaded: LoadedModel, new_tokens: int) -> list[str]:
    """Continue one batch. After the end of a text comes padding, which decodes to nothing."""
    model, tokenizer = loaded.model, loaded.tokenizer
    pad = prefix_token(tokenizer)
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
    )
    time = max(map(len, prompts))
    ids = torch.full((len(prompts), time), pad or 0)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, time - len(prompt) :] = torch.tensor(prompt)
        mask[row, time - len(prompt) :] = 1
    output = model.generate(  # type: ignore[operator]
        ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
    )
    return [str(tokenizer.decode(row[time:], skip_special_tokens=True)) for row in output]
