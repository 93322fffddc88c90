"""Perturbations are pure, remember what they replaced, and have controls that match."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defuse.questions import (
    CONTROL_TOKEN,
    FORGET_TOKEN,
    Perturbation,
    Position,
    Question,
    draw_controls,
    load_tokens,
    perturb,
)
from defuse.utils.errors import UsageError
from tests.helpers.tokenizers_on_the_spot import bytes_only

QUESTION = Question("q", "What does the cat see", ("bird", "tree", "moon", "sun"), 1)
# Draws for QUESTION with ids "0" to "11" and seed 42, as version 0.1.0 made them.
DRAWN: dict[Position, list[int]] = {
    "choice": [0, 0, 3, 3, 3, 3, 2, 2, 0, 2, 0, 3],
    "stem": [3, 1, 3, 3, 2, 3, 0, 0, 4, 0, 1, 4],
}
TOKENS_DRAWN = "xxzxzvvxxxzx"
POSITIONS = st.sampled_from(["choice", "stem", "before"])


@given(POSITIONS, st.integers(0, 50), st.integers(2, 26), st.data())
def test_a_perturbation_changes_one_place_and_remembers_it(
    position: Position, seed: int, count: int, data: st.DataObject
) -> None:
    answer, name = data.draw(st.integers(0, count - 1)), data.draw(st.text("ab", max_size=3))
    texts = tuple(f"text {number}" for number in range(count))
    question = replace(QUESTION, id=name, choices=texts, answer=answer)
    changed = perturb(question, "virus", position, seed)
    replaced = changed.replaced
    assert replaced is not None
    assert replaced.foreign
    assert (replaced.position, replaced.token) == (position, "virus")
    assert changed == perturb(question, "virus", position, seed)
    assert (changed.id, changed.answer) == (question.id, question.answer)
    assert changed.choices[answer] == question.choices[answer]
    choices, words = list(changed.choices), changed.stem.split(" ")
    if position == "choice":
        assert choices[replaced.index] == "virus"
        choices[replaced.index] = replaced.original
    elif position == "stem":
        assert words.pop(replaced.index) == "virus"
    else:
        assert changed.before == "I read about virus today."
    restored = replace(
        changed, choices=tuple(choices), stem=" ".join(words), before="", replaced=None
    )
    assert restored == question


@given(POSITIONS, st.integers(0, 50))
def test_the_control_goes_where_the_forget_token_went(position: Position, seed: int) -> None:
    pairs: dict[str, str] = {"mumps": "spoon", "rabies": "ladder"}
    perturbation = Perturbation(tuple(pairs), position, tuple(pairs.values()))
    variants = perturbation.variants(QUESTION, seed)
    forget, control = variants[FORGET_TOKEN].replaced, variants[CONTROL_TOKEN].replaced
    assert forget is not None
    assert control is not None
    assert forget.index == control.index
    assert control.token == pairs[forget.token]


def test_every_wrong_choice_and_every_place_gets_its_turn() -> None:
    def places(position: Position) -> set[int]:
        changed = [perturb(replace(QUESTION, id=str(i)), "x", position, 0) for i in range(200)]
        return {each.replaced.index for each in changed if each.replaced}

    assert places("choice") == {0, 2, 3}
    assert places("stem") == {0, 1, 2, 3, 4}


def test_draws_are_those_of_version_0_1_0() -> None:
    questions = [replace(QUESTION, id=str(i)) for i in range(12)]
    for position, expected in DRAWN.items():
        changed = [perturb(each, "x", position, 42).replaced for each in questions]
        assert [each.index for each in changed if each] == expected
    tokens = Perturbation(tuple("vwxyz"), "before")
    drawn = [tokens.variants(each, 42)[FORGET_TOKEN].before[13] for each in questions]
    assert "".join(drawn) == TOKENS_DRAWN


def test_draws_differ_between_questions_and_seeds_but_not_with_the_company() -> None:
    perturbation = Perturbation(tuple("abcdefgh"), "before", tuple("stuvwxyz"))
    unrelated = Question("q", "0?", ("1", "2", "3", "4"), 0)
    questions = [replace(unrelated, id=str(i)) for i in range(20)]
    drawn = [perturbation.variants(q, 0)[FORGET_TOKEN].before for q in questions]
    assert len(set(drawn)) > 3
    assert [perturbation.variants(q, 0)[FORGET_TOKEN].before for q in questions[:5]] == drawn[:5]
    assert [perturbation.variants(q, 1)[FORGET_TOKEN].before for q in questions] != drawn


def test_a_token_the_question_mentions_is_passed_over_if_another_is_left() -> None:
    helping = Perturbation(("mumps", "rabies"), "before", ("Tree", "spoon"))
    for seed in range(20):
        assert helping.variants(QUESTION, seed)[CONTROL_TOKEN].before == "I read about spoon today."
    only = Perturbation(("mumps",), "before", ("cat",))
    control = only.variants(QUESTION, 0)[CONTROL_TOKEN].replaced
    assert control is not None
    assert not control.foreign


def test_unequal_lists_are_used_in_full_and_controls_may_be_missing() -> None:
    perturbation = Perturbation(("a1", "a2"), "before", ("b1", "b2", "b3"))
    questions = [replace(QUESTION, id=str(i)) for i in range(60)]
    drawn = {perturbation.variants(q, 0)[CONTROL_TOKEN].before for q in questions}
    assert len(drawn) == 3
    assert set(Perturbation(("a",), "stem").variants(QUESTION, 0)) == {FORGET_TOKEN}


def test_a_prompt_of_its_own_gets_the_token_in_its_stem() -> None:
    own = replace(QUESTION, prompt=f"Q: {QUESTION.stem}\nTerm:")
    changed = perturb(own, "virus", "stem", 3)
    assert changed.prompt == f"Q: {changed.stem}\nTerm:"
    with pytest.raises(UsageError, match="does not contain its question"):
        perturb(replace(QUESTION, prompt="Term:"), "virus", "stem", 3)


def test_no_tokens_and_a_sentence_without_a_place_are_refused() -> None:
    with pytest.raises(UsageError, match="no tokens"):
        Perturbation((), "stem")
    with pytest.raises(UsageError, match=r"has no \{token\}"):
        Perturbation(("a",), "before", sentence="I read a book.")


CORPUS = [
    *["the spoon and the ladder"] * 8,
    *["rabies spoon"] * 4,
    *["a table stood there"] * 2,
    "one bird, and other birds",
]


def test_controls_match_in_token_ids_words_and_frequency_band() -> None:
    tokenizer = bytes_only(CORPUS)  # a byte a token: as long means as many letters
    tokens = ["fever", "mumps", "rabies", "old fox"]
    controls = draw_controls(tokens, CORPUS, tokenizer, seed=0)
    assert [len(control) for control in controls] == [5, 5, 6, 7]
    assert set(controls[:2]) <= {"table", "stood", "there", "birds", "other"}
    assert len(set(controls)) == 4
    assert controls[2] == "ladder"  # 8 times, as near to rabies' 4 as six letters come
    assert controls[3].count(" ") == 1
    assert controls == draw_controls(tokens, CORPUS, tokenizer, seed=0)


def test_the_band_is_the_logarithm_of_the_count() -> None:
    tokenizer = bytes_only(CORPUS)
    corpus = ["fever"] * 9 + ["table"] * 8 + ["stood"] * 15 + ["there"] * 16 + ["birds"] * 7
    drawn = {draw_controls(["fever"], corpus, tokenizer, seed)[0] for seed in range(30)}
    assert drawn == {"table", "stood"}


def test_a_token_nothing_is_as_long_as_is_refused() -> None:
    with pytest.raises(UsageError, match=r"control-corpus.*'encephalomyelitis'"):
        draw_controls(["encephalomyelitis"], CORPUS, bytes_only(CORPUS), seed=0)


def test_token_files_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text("mumps\n\n  heart attack \nmumps\n", encoding="utf-8")
    assert load_tokens(str(path)) == ("mumps", "heart attack")
    path.write_text("\n")
    with pytest.raises(UsageError, match="no token"):
        load_tokens(str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        load_tokens(str(tmp_path / "missing.txt"))
