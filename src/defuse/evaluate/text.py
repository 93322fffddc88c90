"""Beside questions: how well a model predicts a text, and what it writes, for the eye."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig

from defuse.decoder import Decoder
from defuse.errors import UsageError
from defuse.evaluate.encode import encode_text, prefix_token
from defuse.evaluate.ledger import Ledger
from defuse.evaluate.scorer import OnScored, max_length, score
from defuse.evaluate.trees import Request
from defuse.files import read_utf8
from defuse.models import LoadedModel

LONGEST_WINDOW = 2048  # so that a model made for book-length texts still fits on a laptop
NEW_TOKENS = 48
WRITTEN_TOGETHER = 32  # prompts


@dataclass(frozen=True)
class Perplexity:
    """Of one text. `perplexity` is per token; `bits_per_byte` compares tokenizers (UTF-8 bytes).

    `tokens` were predicted, in windows of at most `window` tokens.
    """

    tokens: int
    bytes: int
    window: int
    perplexity: float
    bits_per_byte: float


def read_passage(source: str) -> str:
    """A text file that is not blank. Raises UsageError for any other."""
    text = read_utf8(Path(source))
    if not text.strip():
        raise UsageError(f"{source}: is empty; give a file with text")
    return text


def perplexity(loaded: LoadedModel, text: str, ledger: Ledger | None = None) -> Perplexity:
    """Every token predicted once, in windows as `HFLM.loglikelihood_rolling` of lm-eval cuts them.

    Unlike there, a BOS that the tokenizer itself puts in front is read, not predicted. `ledger` is
    as for `score`. Raises UsageError for a text of less than two tokens and for figures that are
    not finite.
    """
    window = min(LONGEST_WINDOW, max_length(loaded.model, loaded.tokenizer))
    requests = _windows(loaded, text, window)
    groups = [[request] for request in requests]
    name = hashlib.sha256(text.encode()).hexdigest()
    scores = score(Decoder(loaded.model), groups, max_length=window, ledger=ledger, name=name)
    log_likelihood = math.fsum(value for (value,) in scores)
    tokens, size = sum(len(r.continuation) for r in requests), len(text.encode())
    return Perplexity(
        tokens=tokens,
        bytes=size,
        window=window,
        perplexity=math.exp(-log_likelihood / tokens),
        bits_per_byte=-log_likelihood / math.log(2) / size,
    )


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    new_tokens: int = NEW_TOKENS,
    *,
    batch_size: int = WRITTEN_TOGETHER,
    on_scored: OnScored = lambda _: None,
) -> list[str]:
    """The most likely continuation of each prompt, at most `new_tokens` tokens, greedily.

    Prompts of like length go together, padded on the left. A prompt too long for the model is cut
    on the left. `on_scored` is told how many prompts each batch has finished.
    """
    room = max(1, max_length(loaded.model, loaded.tokenizer) - new_tokens)
    encoded = [encode_text(prompt, loaded.tokenizer)[-room:] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        written = _write([encoded[index] for index in batch], loaded, new_tokens)
        for index, text in zip(batch, written, strict=True):
            texts[index] = text
        on_scored(len(batch))
    return texts


def _write(prompts: Sequence[Sequence[int]], loaded: LoadedModel, new_tokens: int) -> list[str]:
    """Continue one batch; what follows a text's end is padding, which decodes to nothing."""
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


def _windows(loaded: LoadedModel, text: str, window: int) -> list[Request]:
    ids, start = encode_text(text, loaded.tokenizer), prefix_token(loaded.tokenizer)
    if start is None or ids[:1] == (start,):
        context, ids = ids[:1], ids[1:]
    else:
        context = (start,)
    if not ids:
        raise UsageError("text: makes less than two tokens; give more of it")
    requests = [Request(context, ids[:window])]
    for done in range(window, len(ids), window):
        end = min(done + window, len(ids))
        requests.append(Request(ids[end - window - 1 : done], ids[done:end]))
    return requests
