"""Perplexity of a text."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from defuse.evaluate.encoding import encode_text, prefix_token
from defuse.evaluate.loglikelihood import max_length, score
from defuse.evaluate.resume import Ledger
from defuse.evaluate.token_tree import Request
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.utils.errors import UsageError
from defuse.utils.files import read_utf8

LONGEST_WINDOW = 2048  # so that a model made for book-length texts still fits on a laptop


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
