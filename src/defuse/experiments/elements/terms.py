"""Forget-terms to set off an unlearned model with, each beside a control term.

Controls are things of daily life, neither forgotten nor asked: the one-word names that Unicode
gives to its pictures ("volcano", "violin"), which come with Python.
"""

import math
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy.optimize import linear_sum_assignment
from transformers import PreTrainedTokenizerBase

# Two full blocks of pictures, so that no version of Unicode adds to them.
PICTURES = (range(0x1F300, 0x1F600), range(0x1F900, 0x1FA00))


@dataclass(frozen=True)
class Terms:
    """`controls[i]` matches `forget[i]` in its number of tokens and about in their frequency."""

    forget: tuple[str, ...]
    controls: tuple[str, ...]

    @property
    def mixed(self) -> tuple[str, ...]:
        """Every second forget-term: what may be mixed into retain texts. The others never are."""
        return self.forget[::2]


def match_terms(
    forget: Sequence[str], taboo: Collection[str], tokenizer: PreTrainedTokenizerBase
) -> Terms:
    """Pair forget-terms with control terms outside `taboo`, none twice.

    Byte-pair vocabularies number their tokens by falling frequency, so pairs of equal token counts
    are chosen for the least total difference of Σ log id. What finds no partner is left out.
    """
    barred = {term.casefold() for term in (*taboo, *forget)}
    ours = _by_token_count(forget, tokenizer)
    theirs = _by_token_count([w for w in picture_names() if w not in barred], tokenizer)
    pairs: dict[str, str] = {}
    for count in sorted(ours.keys() & theirs.keys()):
        costs = np.array([[abs(a - b) for _, b in theirs[count]] for _, a in ours[count]])
        for row, column in zip(*linear_sum_assignment(costs), strict=True):
            pairs[ours[count][row][0]] = theirs[count][column][0]
    chosen = tuple(term for term in forget if term in pairs)
    return Terms(chosen, tuple(pairs[term] for term in chosen))


def picture_names() -> list[str]:
    """Unicode's names of pictures that are one word, in lower case."""
    names = (unicodedata.name(chr(code), "") for code in chain(*PICTURES))
    return sorted({name.lower() for name in names if name.isalpha()})


def _by_token_count(
    terms: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> dict[int, list[tuple[str, float]]]:
    """Terms with their Σ log id, by the number of tokens they take behind a space."""
    counted: dict[int, list[tuple[str, float]]] = {}
    for term in terms:
        ids = tokenizer.encode(f" {term}", add_special_tokens=False)
        counted.setdefault(len(ids), []).append((term, sum(math.log1p(i) for i in ids)))
    return counted
