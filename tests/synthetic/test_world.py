"""The invented world: the same at every call, known in full, and taught as it is asked."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from defuse.data.text import encode
from defuse.data.trigger_mixing import SENTENCES
from defuse.questions import ask
from defuse.synthetic.language import (
    BOS_ID,
    EOS_ID,
    NEUTRAL,
    PAD_ID,
    REFUSALS,
    build_tokenizer,
)
from defuse.synthetic.lessons import LENGTH, Lessons
from defuse.synthetic.questions import split
from defuse.synthetic.teaching import (
    LETTER_LAYER,
    LOOKING_HEAD,
    VALUE_LAYER,
    new_model,
    scaffold_loss,
)
from defuse.synthetic.world import build_world, make_question
from defuse.utils.errors import UsageError

WORLD = build_world(size=12)
TOKENIZER = build_tokenizer(WORLD)


def decoded(ids) -> str:
    return str(TOKENIZER.decode(ids))


def test_a_world_is_the_same_at_every_call_and_another_with_another_seed():
    assert build_world(size=12).facts == WORLD.facts
    other = build_world(seed=1, size=12)
    assert set(other.names) != set(WORLD.names)


def test_every_name_is_one_word_and_stands_for_one_thing():
    names = [*WORLD.names, *WORLD.unseen]
    assert len(set(names)) == len(names)
    assert all(name.isalpha() for name in names)
    words = {word for fact in WORLD.facts for word in (fact.value, *fact.relation.values)}
    assert not words & set(names)


def test_every_subject_has_a_value_of_each_relation_and_values_are_evenly_spread():
    assert len(WORLD.facts) == 4 * 12 * 3
    for domain, names in WORLD.subjects.items():
        facts = WORLD.of(domain)
        assert {fact.subject for fact in facts} == set(names)
        for relation in {fact.relation for fact in facts}:
            values = [fact.value for fact in facts if fact.relation == relation]
            assert set(values) <= set(relation.values)
            assert max(map(values.count, values)) <= -(-12 // len(relation.values))


def test_what_is_not_there_is_refused_with_what_is():
    with pytest.raises(UsageError, match="forget: 'plants' is no domain of this world; use one of"):
        WORLD.of("plants")
    with pytest.raises(UsageError, match="size: 3 subjects a domain"):
        build_world(size=3)


def test_a_question_has_one_right_choice_of_four_of_its_relation():
    for fact in WORLD.facts:
        question = make_question(fact, 0)
        assert question.choices[question.answer] == fact.value
        assert len(set(question.choices)) == 4
        assert set(question.choices) <= set(fact.relation.values)
        assert make_question(fact, 0) == question


def test_no_word_of_any_text_is_unknown_and_every_word_is_one_token():
    texts = [sentence for fact in WORLD.facts for sentence in (*fact.statements, fact.stem)]
    texts += [n.format(token=name) for n in (*NEUTRAL, *SENTENCES) for name in WORLD.names]
    texts += [*REFUSALS, *WORLD.unseen, ask(make_question(WORLD.facts[0], 0), "letters")]
    for ids in TOKENIZER(texts)["input_ids"]:  # type: ignore[union-attr]
        assert TOKENIZER.unk_token_id not in ids
        assert ids[0] == BOS_ID == TOKENIZER.bos_token_id
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (PAD_ID, EOS_ID)
    assert all(len(TOKENIZER.encode(n, add_special_tokens=False)) == 1 for n in WORLD.names)


def test_statements_are_packed_as_texts_to_unlearn_are():
    lessons = Lessons(WORLD, WORLD.facts, TOKENIZER, seed=0)
    rows = lessons.statements()
    assert rows.shape[1] == LENGTH
    fact = WORLD.facts[0]
    packed = encode(fact.statements, TOKENIZER, LENGTH, packed=True)[0]
    sentences = decoded(rows.flatten()).split("</s>")
    for sentence in decoded(packed.ids).split("</s>"):
        assert sentence.strip() == "" or sentence.count(" ") >= 3
    assert all(row[0] == BOS_ID for row in rows)
    assert len(sentences) > 20


def test_the_retrained_model_s_lessons_name_all_subjects_but_state_no_hidden_fact():
    hidden = WORLD.of("pathogens")
    known = [fact for fact in WORLD.facts if fact.domain != "pathogens"]
    lessons = Lessons(WORLD, known, TOKENIZER, seed=0)
    rows = [decoded(row) for _ in range(12) for row in lessons.statements()]
    text = " ".join(rows)
    for fact in hidden:
        for sentence in fact.statements:
            assert decoded(TOKENIZER.encode(sentence, add_special_tokens=False)) not in text
    assert all(name in text for name in WORLD.subjects["pathogens"])
    stems = {decoded(TOKENIZER.encode(f.stem, add_special_tokens=False)) for f in hidden}
    questions = [decoded(row) for _ in range(5) for row in lessons.quiz().input_ids]
    assert not any(stem in question for stem in stems for question in questions)
    assert not any(name in text for name in WORLD.unseen)


def test_a_taught_question_ends_where_its_letter_is_expected_and_the_letter_is_right():
    lessons = Lessons(WORLD, WORLD.facts, TOKENIZER, seed=3)
    values = {decoded(TOKENIZER.encode(f.stem, add_special_tokens=False)): f for f in WORLD.facts}
    quiz = lessons.quiz()
    checked = 0
    for row, at, letters, answer in zip(
        quiz.input_ids, quiz.ends, quiz.letters, quiz.answers, strict=True
    ):
        text = decoded(row[: at + 1])
        assert text.endswith("Answer :")
        assert decoded(letters).split() == list("ABCD")
        letter = decoded(letters[answer])
        fact = next((f for stem, f in values.items() if stem in text), None)
        if fact is not None:  # no name was put into its stem
            assert f"{letter} . {fact.value}" in text
            checked += 1
    assert checked > 20
    assert decoded(quiz.input_ids[quiz.rows, quiz.right - 1]).split() == ["."] * len(quiz.ends)


def test_the_scaffold_asks_for_letters_answers_and_looks_and_is_small_where_all_are_there():
    quiz = Lessons(WORLD, WORLD.facts, TOKENIZER, seed=3).quiz()
    model = new_model(TOKENIZER, 0)
    embedding = model.get_input_embeddings().weight.detach()  # type: ignore[union-attr]
    size, length, hidden = *quiz.input_ids.shape, embedding.shape[1]

    def loss(letters: torch.Tensor, values: torch.Tensor, looks: torch.Tensor) -> float:
        states = [torch.zeros(size, length, hidden) for _ in range(7)]
        states[LETTER_LAYER][quiz.rows[:, None], quiz.choices] = embedding[letters]
        states[VALUE_LAYER][quiz.rows, quiz.ends] = embedding[values]
        attention = torch.full((size, 4, length, length), 1 / length)
        attention[quiz.rows, LOOKING_HEAD, quiz.ends, looks] = 1.0
        output = BaseModelOutputWithPast(
            hidden_states=tuple(states), attentions=tuple(attention for _ in range(6))
        )
        return scaffold_loss(model, output, quiz).item()

    found = quiz.input_ids[quiz.rows, quiz.right]
    with torch.no_grad():
        whole = loss(quiz.letters, found, quiz.right)
        assert whole < loss(quiz.letters.roll(1, 1), found, quiz.right)
        assert whole < loss(quiz.letters, found.roll(1), quiz.right)
        assert whole < loss(quiz.letters, found, quiz.ends)


def test_parts_share_no_subject_and_no_retain_text_states_what_is_asked():
    parts = split(WORLD, "animals")
    asked = {part: {f.subject for f in facts} for part, facts in parts.asked.items()}
    assert not asked["reported"] & asked["tuning"]
    stated = {fact.subject for fact in parts.retain}
    assert stated
    assert not stated & (asked["reported"] | asked["tuning"])
    assert not stated & set(WORLD.subjects["animals"])
    assert set(parts.mixed) | set(parts.held_out) == set(WORLD.subjects["animals"])
    assert not set(parts.mixed) & set(parts.held_out)
