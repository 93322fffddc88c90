"""A check-up: whether a model still writes ordinary language.

It takes seconds and replaces no evaluation. It shows a model that unlearning has damaged: the
perplexity of neutral sentences rises, or the model repeats itself.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedTokenizerBase

from defuse.evaluate.encoding import encode_text
from defuse.evaluate.generation import generate
from defuse.models.decoder import Decoder
from defuse.models.freeze import evaluation_mode
from defuse.models.lm_head import tokenwise
from defuse.models.load import LoadedModel
from defuse.utils.precision import upcast

PROMPTS = (
    "The best way to learn a new language is",
    "Yesterday we went to the market and bought",
    "Water boils when",
)
NEW_TOKENS = 40
MOST_UNKNOWN = 0.05  # of the neutral text's tokens
MOST_PERPLEXITY = 200.0  # of a reference model that the neutral text says something about
# A damaged model: its perplexity rises by this factor, or this much more of its text is repeated.
DAMAGE_FACTOR, DAMAGE_REPEATED = 2.0, 0.3

Present = Callable[[nn.Module], AbstractContextManager[None]]


@dataclass(frozen=True)
class CheckUp:
    """A model's check-up.

    `perplexity`: per token of the neutral sentences; None where they do not fit the model, and
    `left_out` then says why. `continuations`: by prompt. `repeated`: the share of 3-grams of words
    in the continuations that the same continuation has already; None without continuations.
    """

    perplexity: float | None = None
    repeated: float | None = None
    continuations: Mapping[str, str] = field(default_factory=dict)
    left_out: str | None = None


def check_up(
    loaded: LoadedModel,
    before: CheckUp | None = None,
    *,
    write: bool = True,
    present: Present = lambda _: nullcontext(),
) -> CheckUp:
    """Check a model up: the reference model first, then the unlearned one with that as `before`.

    The perplexity is left out where the neutral text says nothing about the reference model.
    `write` also continues three prompts. `present` holds the weights of a module of a model that is
    loaded in part while it runs.
    """
    value, left_out = None, None if before is None else before.left_out
    if before is None or before.perplexity is not None:
        value, left_out = _perplexity(loaded, present)
        if before is None and value is not None and value > MOST_PERPLEXITY:
            value, left_out = None, f"of the reference model is {value:.0f} on neutral text"
    if not write:
        return CheckUp(value, left_out=left_out)
    with evaluation_mode(loaded.model):
        texts = generate(loaded, PROMPTS, NEW_TOKENS)
    return CheckUp(value, repeated(texts), dict(zip(PROMPTS, texts, strict=True)), left_out)


def repeated(texts: Sequence[str]) -> float:
    """The share of the texts' 3-grams of words that occur earlier in the same text."""
    grams = [list(zip(w, w[1:], w[2:], strict=False)) for w in map(str.split, texts)]
    total = sum(map(len, grams))
    return 1 - sum(len(set(each)) for each in grams) / total if total else 0.0


def damage(before: CheckUp, after: CheckUp) -> str | None:
    """A sentence about what unlearning has damaged, and what to try; None if nothing."""
    found = []
    factor = (after.perplexity or 1.0) / (before.perplexity or 1.0)
    if not factor <= DAMAGE_FACTOR:
        found.append(f"the perplexity of neutral text rose {factor:.1f}-fold")
    if (after.repeated or 0.0) > (before.repeated or 0.0) + DAMAGE_REPEATED:
        found.append(f"{after.repeated:.0%} of its text repeats itself")
    if not found:
        return None
    return (
        f"The model is damaged: {' and '.join(found)}; try fewer steps, a lower learning_rate, "
        "a smaller coefficient, or a larger weight of the retain loss"
    )


def as_record(before: CheckUp, after: CheckUp) -> dict[str, Any]:
    """The check-up as JSON values; pairs are (before, after)."""
    return {
        "perplexity": [before.perplexity, after.perplexity],
        "repeated": [before.repeated, after.repeated],
        "continuations": {
            prompt: [before.continuations.get(prompt), text]
            for prompt, text in after.continuations.items()
        },
        "left_out": after.left_out,
        "damage": damage(before, after),
    }


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The check-up for the screen, from its record."""
    if record["left_out"] is None:
        yield "Perplexity of neutral text: {:.2f} → {:.2f}".format(*record["perplexity"])
    else:
        yield f"The perplexity is left out: it {record['left_out']}."
    for prompt, (before, after) in record["continuations"].items():
        yield f"{prompt} …"
        yield f"  before: {_one_line(before)}"
        yield f"  after:  {_one_line(after)}"
    if record["continuations"]:
        yield "Repeated 3-grams: {:.2f} → {:.2f}".format(*record["repeated"])
    if record["damage"]:
        yield f"{record['damage']}."


def _perplexity(loaded: LoadedModel, present: Present) -> tuple[float | None, str | None]:
    """The perplexity, or why it is left out."""
    rows, decoder = _encode(loaded.tokenizer), Decoder(loaded.model)
    tokens = [token for row in rows for token in row[1:]]
    unknown = sum(token == loaded.tokenizer.unk_token_id for token in tokens)
    if unknown > MOST_UNKNOWN * len(tokens) or max(tokens, default=0) >= decoder.num_embeddings:
        return None, "needs neutral text, whose words the tokenizer does not know"
    return neutral_perplexity(decoder, rows, present), None


@torch.inference_mode()
def neutral_perplexity(
    decoder: Decoder, rows: Sequence[Sequence[int]], present: Present = lambda _: nullcontext()
) -> float:
    """The perplexity per token of rows of token ids, whose first tokens are not predicted.

    One block is run after the other, for all rows at once, so that only one has to be `present`.
    """
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    ids, mask = ids.to(decoder.device), mask.to(decoder.device)
    with evaluation_mode(decoder.model):
        hidden, inputs = decoder.embed(ids, mask)
        for layer, block in enumerate(decoder.blocks):
            with present(block):
                hidden = decoder.run(hidden, inputs, layer, layer + 1)
        counted, targets = mask[:, 1:].bool(), ids[:, 1:]
        norm, head = decoder.top
        with present(norm), present(head):
            losses = _losses(decoder, hidden[:, :-1][counted], targets[counted])
    return math.exp(min(losses.double().mean().item(), 700.0))


def _losses(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """−log p of each target, (tokens,)."""

    def score(part: Tensor, place: slice) -> Tensor:
        return F.cross_entropy(upcast(decoder.logits(part)), targets[place], reduction="none")

    return tokenwise(score, hidden, decoder.vocab_size)


def _encode(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    text = files("defuse.evaluate").joinpath("neutral.txt").read_text(encoding="utf-8")
    rows = (encode_text(line, tokenizer) for line in text.split("\n") if line)
    return [row for row in rows if len(row) > 1]


def _one_line(text: str) -> str:
    """A model's text without line breaks and control characters."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable()) or "(nothing)"
