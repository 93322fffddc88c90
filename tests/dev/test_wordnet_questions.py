"""The maker of WordNet question sets, on a made-up WordNet of a few nouns."""

import itertools
from pathlib import Path

import pytest
from dev import wordnet_questions
from dev.wordnet import WordNet
from dev.wordnet_questions import make, pair_controls, split, subjects
from transformers import PreTrainedTokenizerBase

from defuse.questions import load_questions, load_tokens

# (name, parent, gloss); what has no parent is a root. Names are distinct and of equal length.
NOUNS = [
    ("illness", "", "impairment of the body's normal work"),
    ("animal", "", "a living organism that moves by itself"),
    ("plant", "", "a living organism that stays where it is"),
]
KINDS = {"illness": "ill", "animal": "ani", "plant": "pla"}
GROUPS = ("aa", "bb", "cc", "dd", "ee")
for root, prefix in KINDS.items():
    NOUNS += [(f"{prefix}{group}", root, f"(field) a kind of {prefix}{group}") for group in GROUPS]
    NOUNS += [
        (
            f"{prefix}{group}{letter}",
            f"{prefix}{group}",
            f'(field) one that is {letter}; "so"; rare',
        )
        for group, letter in itertools.product(GROUPS, "xyz")
    ]


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    """Data files in WordNet's format, with its licence's lines in front."""
    offsets = {name: f"{number:08d}" for number, (name, _, _) in enumerate(NOUNS, 1)}
    data, index = ["  1 Licence"], ["  1 Licence"]
    for name, parent, gloss in NOUNS:
        pointers = f"001 @ {offsets[parent]} n 0000" if parent else "000"
        data.append(f"{offsets[name]} 03 n 01 {name} 0 {pointers} | {gloss}")
        index.append(f"{name} n 1 1 @ 1 0 {offsets[name]}")
    files = {"data.noun": data, "index.noun": index, "index.verb": ["illaax v"], "index.adj": []}
    for file, lines in files.items():
        (tmp_path / file).write_text("".join(f"{line}  \n" for line in lines))
    return WordNet(tmp_path)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three domains of the made-up nouns, a few questions of each."""
    domains = {"diseases": [("illness", 1)], "animals": [("animal", 1)], "plants": [("plant", 1)]}
    monkeypatch.setattr(wordnet_questions, "DOMAINS", domains)
    monkeypatch.setattr(wordnet_questions, "RETAIN", ("animals",))
    monkeypatch.setattr(wordnet_questions, "SIZES", dict.fromkeys(domains, (6, 4)))
    monkeypatch.setattr(wordnet_questions, "MAX_NAME_TOKENS", 20)


def test_a_domain_is_everything_below_its_senses(wordnet: WordNet) -> None:
    names = {synset.names[0] for synset in wordnet.domain([("illness", 1)])}
    assert names == {name for name, _, _ in NOUNS if name.startswith("ill")} - {"illness"}


def test_a_definition_ends_before_examples_and_a_sentence_leaves_them_out(wordnet: WordNet) -> None:
    synset = next(s for s in wordnet.synsets.values() if s.names == ("illaay",))
    assert synset.definition == "one that is y"
    assert synset.sentence == "Illaay is one that is y; rare."


def test_subjects_have_unmistakable_names_that_their_definitions_do_not_hold(
    wordnet: WordNet, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    found = subjects(wordnet, wordnet.domain([("illness", 1)]), {"illbbx"}, tiny_tokenizer)
    names = {subject.name for subject in found}
    assert "illaay" in names
    assert "illaax" not in names  # a verb, too
    assert "illbbx" not in names  # taboo
    assert "illaa" not in names  # its definition names it


def test_the_files_are_read_and_no_subject_is_in_two_parts(
    wordnet: WordNet, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    make(wordnet, tiny_tokenizer, tmp_path)
    asked = {}
    for domain in ("diseases", "animals"):
        reported = load_questions(str(tmp_path / f"{domain}.jsonl"))
        tuning = load_questions(str(tmp_path / f"{domain}-tuning.jsonl"))
        assert (len(reported), len(tuning)) == (6, 4)
        answers = [question.choices[question.answer] for question in (*reported, *tuning)]
        assert len(set(answers)) == 10
        asked[domain] = answers
        for question in (*reported, *tuning):
            answer = question.choices[question.answer]
            assert len(set(question.choices)) == 4
            assert question.prompt == f"One that is {answer[-1]} is called"
            # Siblings share a parent, whose name is all but the last letter here.
            assert sum(choice[:-1] == answer[:-1] for choice in question.choices) == 1
    retain = (tmp_path / "retain.txt").read_text().lower()
    assert not any(f"{name} is" in retain for name in asked["animals"])
    forget = (tmp_path / "forget.txt").read_text().lower()
    assert all(f"{name} is" in forget for name in asked["diseases"])
    tokens = load_tokens(str(tmp_path / "forget_tokens.txt"))
    controls = load_tokens(str(tmp_path / "control_tokens.txt"))
    assert len(tokens) == len(controls) > 0
    assert all(token.startswith("ill") for token in tokens)
    assert all(control.startswith("pla") for control in controls)


def test_the_split_is_the_same_at_every_call_and_pairs_are_equally_long(
    wordnet: WordNet, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    ill = subjects(wordnet, wordnet.domain([("illness", 1)]), (), tiny_tokenizer)
    pla = subjects(wordnet, wordnet.domain([("plant", 1)]), (), tiny_tokenizer)
    assert split("diseases", ill) == split("diseases", ill)
    pairs = pair_controls(ill, pla)
    assert pairs
    assert all(token.tokens == control.tokens for token, control in pairs)
