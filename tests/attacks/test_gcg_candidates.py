"""Candidates differ where they shall, by tokens that may stand there, and survive as text."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from defuse.attacks.gcg.candidates import Spelling, allowed_tokens, random_suffix, sample
from defuse.attacks.gcg.config import Where
from defuse.attacks.gcg.places import question_place, with_suffix
from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_pairs
from defuse.models.decoder import Decoder
from defuse.questions import Question, ask, few_shot_part
from defuse.utils.random import generator
from tests.conftest import CORPUS, build_llama, build_tokenizer
from tests.helpers.tokenizers_on_the_spot import KINDS

QUESTIONS = (
    Question("0", "What does the cat see? ", ("a bird", "a tree", "the moon", "books"), 0),
    Question("1", "Name the small one", ("1", "2", "3", "4"), 3, before="I read about it today."),
)
SETTINGS = Settings(subject="college_biology", few_shot=QUESTIONS[:1])


def spelling_of(
    tokenizer: PreTrainedTokenizerBase, where: Where = "end"
) -> tuple[Spelling, torch.Tensor]:
    decoder = Decoder(build_llama(vocab_size=len(tokenizer)))
    allowed = allowed_tokens(tokenizer, decoder, allow_non_ascii=False)
    probes = allowed[::7].tolist()
    places = [question_place(each, SETTINGS, where, tokenizer, probes) for each in QUESTIONS]
    return Spelling(tokenizer, places, probes), allowed


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_candidates_replace_so_many_tokens_by_the_best_of_their_places(data: st.DataObject) -> None:
    length, count = data.draw(st.integers(1, 6)), data.draw(st.integers(3, 12))
    n_replace, topk = data.draw(st.integers(1, length)), data.draw(st.integers(1, 14))
    width, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 99))
    rng = torch.Generator().manual_seed(seed)
    allowed = torch.randperm(50, generator=rng)[:count]
    parent = torch.randint(50, (length,), generator=rng).tolist()
    gradient = torch.randn(length, count, generator=rng)
    candidates = sample(
        parent,
        gradient,
        allowed,
        search_width=width,
        topk=topk,
        n_replace=n_replace,
        rng=generator(seed, "test"),
    )
    assert 1 <= len(candidates) <= width
    assert len(candidates.unique(dim=0)) == len(candidates)
    for candidate in candidates.tolist():
        changed = [place for place in range(length) if candidate[place] != parent[place]]
        assert len(changed) == n_replace
        for place in changed:
            falling = allowed[gradient[place].argsort()].tolist()
            best = [token for token in falling if token != parent[place]][: min(topk, count - 1)]
            assert candidate[place] in best


def test_a_place_with_few_good_tokens_gives_those_alone() -> None:
    gradient = torch.tensor([[3.0, -2.0, 1.0, -5.0]])
    candidates = sample(
        [8],
        gradient,
        torch.tensor([5, 6, 7, 8]),
        search_width=64,
        topk=2,
        n_replace=1,
        rng=generator(0, "test"),
    )
    assert candidates[:, 0].tolist() == [6, 7]  # 8 is best by gradient, but stands there


def test_tokens_that_may_not_stand_in_a_suffix() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["reserved"])
    decoder = Decoder(build_llama(vocab_size=len(tokenizer) + 8))
    allowed = allowed_tokens(tokenizer, decoder, allow_non_ascii=False).tolist()
    texts = [str(tokenizer.decode(token)) for token in allowed]
    assert not {*tokenizer.all_special_ids, *tokenizer("reserved\n").input_ids} & {*allowed}
    assert max(allowed) < len(tokenizer)
    assert all(text.isascii() and text.isprintable() and text.rstrip() == text for text in texts)
    assert {"x", "?", " cat"} <= set(texts)


@pytest.mark.parametrize("where", get_args(Where))
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_is_what_an_evaluation_reads(kind: str, where: Where) -> None:
    tokenizer = KINDS[kind](CORPUS)
    spelling, allowed = spelling_of(tokenizer, where)
    suffix = random_suffix(spelling, allowed, 6, generator(0, "test"))
    assert len(suffix) == 6
    assert suffix == random_suffix(spelling, allowed, 6, generator(0, "test"))
    (text,) = spelling.texts([suffix])
    front = few_shot_part(SETTINGS.subject, SETTINGS.few_shot, "letters")
    for question, place in zip(QUESTIONS, spelling.places, strict=True):
        asked = front + ask(with_suffix(question, text, SETTINGS, where), "letters")
        (request,) = encode_pairs([(asked, " A")], tokenizer)
        assert request.context == (*place.before, *suffix, *place.after)


@pytest.mark.parametrize("where", get_args(Where))
@pytest.mark.parametrize("kind", KINDS)
def test_the_sieve_keeps_all_that_stand_and_little_else(kind: str, where: Where) -> None:
    spelling, allowed = spelling_of(KINDS[kind](CORPUS), where)
    draws = torch.randint(len(allowed), (300, 2), generator=generator(0, "test"))
    candidates = allowed[draws]
    standing = [row for row in candidates.tolist() if spelling.survives(row)]
    kept = spelling.survivors(candidates).tolist()
    assert standing
    assert all(row in kept for row in standing)
    assert len(kept) <= len(standing) + 15


def test_tokens_that_merge_are_dropped() -> None:
    tokenizer = build_tokenizer()
    spelling, _ = spelling_of(tokenizer)
    cat, halves = tokenizer.convert_tokens_to_ids(["Ġcat", "Ġc"]), []
    assert isinstance(cat, list)
    halves = [cat[1], *tokenizer("at", add_special_tokens=False).input_ids]
    whole = torch.tensor([[cat[0]] * len(halves), halves])
    assert spelling.survivors(whole).tolist() == whole[:1].tolist()
