"""The perplexity of a text."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from defuse.data.given import given_text
from defuse.data.token_ids import prefix_token
from defuse.evaluate.encoding import encode_text
from defuse.evaluate.loglikelihood import max_length, score
from defuse.evaluate.resume import BatchScores
from defuse.evaluate.token_tree import TokenPair
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel
from defuse.utils.errors import UsageError
from defuse.utils.files import read_utf8
from defuse.utils.progress import SILENT, Progress

LONGEST_WINDOW = 2048  # tokens: a model for book-length texts still runs on a laptop


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of one text.

    `perplexity` is per token. `bits_per_byte` (of UTF-8) is comparable between tokenizers. `tokens`
    tokens were predicted, in windows of at most `window` tokens.
    """

    tokens: int
    bytes: int
    window: int
    perplexity: float
    bits_per_byte: float


def read_passage(source: str) -> str:
    """Read a text file. Raises UsageError for a blank one."""
    text = read_utf8(Path(source))
    if not text.strip():
        raise UsageError(f"{source}: is empty; give a file with text")
    return text


def perplexity(
    loaded: LoadedModel,
    text: str,
    scores: BatchScores | None = None,
    progress: Progress = SILENT,
) -> Perplexity:
    """Predict every token once, in the windows of `HFLM.loglikelihood_rolling` of lm-eval.

    Unlike there, a BOS that the tokenizer itself adds is read, not predicted. `scores` is as for
    `score`; `progress` has a stage of its own. Raises UsageError for a text of less than two tokens
    and for log-probabilities that are not finite.
    """
    text = given_text(text, "text")
    window = min(LONGEST_WINDOW, max_length(loaded.model, loaded.tokenizer))
    pairs = _windows(loaded, text, window)
    groups = [[pair] for pair in pairs]
    name = hashlib.sha256(text.encode()).hexdigest()
    progress.start(f"{loaded.name}, text", len(groups))
    values = score(
        Decoder(loaded.model),
        groups,
        max_length=window,
        progress=progress,
        scores=scores,
        name=name,
    )
    log_likelihood = math.fsum(value for (value,) in values)
    tokens, size = sum(len(r.continuation) for r in pairs), len(text.encode())
    return Perplexity(
        tokens=tokens,
        bytes=size,
        window=window,
        perplexity=math.exp(-log_likelihood / tokens),
        bits_per_byte=-log_likelihood / math.log(2) / size,
    )


def _windows(loaded: LoadedModel, text: str, window: int) -> list[TokenPair]:
    ids, start = encode_text(text, loaded.tokenizer), prefix_token(loaded.tokenizer)
    if start is None or ids[:1] == (start,):
        context, ids = ids[:1], ids[1:]
    else:
        context = (start,)
    if not ids:
        raise UsageError("text: makes less than two tokens; give more of it")
    pairs = [TokenPair(context, ids[:window])]
    for done in range(window, len(ids), window):
        end = min(done + window, len(ids))
        pairs.append(TokenPair(ids[end - window - 1 : done], ids[done:end]))
    return pairs
