"""Rephrasing finds knowledge that is hidden in one wording, and makes none where there is none."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from defuse.attacks import AttackData, rephrase
from defuse.attacks.prompts import Prompt, mean_outcome, score_prompts
from defuse.attacks.rephrase.best import PLAIN, any_way, best_way
from defuse.attacks.rephrase.config import FEW_SHOT, WAYS, Rephrasing
from defuse.attacks.rephrase.templates import TEMPLATES, all_orders, mistype, reordered, rotations
from defuse.attacks.rephrase.ways import plan, unknown_share
from defuse.attacks.split_half import halves
from defuse.evaluate import MCAnswer, Settings, evaluate_questions
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Question, ask
from defuse.synthetic.models import load_pair
from defuse.synthetic.questions import original_questions
from defuse.synthetic.world import build_world
from defuse.utils.errors import UsageError
from defuse.utils.random import generator
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.helpers.planted import check_resumes, outline

TOKENIZER = build_tokenizer()
MOON = Question("moon", "What shines?", ("The moon", "A cat", "A tree", "A bird"), 0)
CAT = Question("cat", "Who sees it?", ("A tree", "The cat", "The moon", "Nobody"), 1)


def few(count: int) -> list[Question]:
    return [replace((MOON, CAT)[i % 2], id=f"q{i}") for i in range(count)]


@pytest.fixture(scope="module")
def lab():
    pair = load_pair()
    questions = original_questions(build_world(), "pathogens", "reported")
    return pair, AttackData(questions["forget"][:24], questions["retain"][:24])


def with_letter_bias(model, tokenizer, strength: float):
    """Answers the letter A whatever the question is: what it knows shows only over all orders."""
    biased = deepcopy(model)
    head = biased.get_output_embeddings()
    bias = torch.zeros(head.out_features)
    bias[tokenizer.convert_tokens_to_ids("A")] = strength
    head.bias = nn.Parameter(bias)
    return biased


def named(result, name):
    return next(each for each in result.conditions if each.name == name)


def test_the_vote_over_orders_finds_what_a_planted_letter_hides(lab):
    pair, data = lab
    biased = with_letter_bias(pair.reference.model, pair.reference.tokenizer, 60.0)
    config = Rephrasing(ways=("orders", "q-and-a"))
    result = rephrase.run(biased, pair.reference.tokenizer, data, config)
    vote = named(result, "vote over orders").effects["forget"]
    assert vote.before.accuracy.value < 0.5
    assert vote.after.accuracy.value > 0.9
    assert vote.accuracy.p_value < 0.01
    assert named(result, "q-and-a").effects["forget"].after.accuracy.value < 0.5
    best = named(result, "best way, chosen on the other half").effects["forget"]
    assert best.after.accuracy.value > 0.9
    assert any("A. " in example.asked_after for example in result.examples)


def test_a_model_that_never_learnt_gives_nothing_away_and_any_way_is_no_find(lab):
    pair, data = lab
    result = rephrase.run(pair.retrained.model, pair.retrained.tokenizer, data)
    for each in result.conditions:
        assert each.effects["forget"].accuracy.p_value > 0.01, each.name
    numbers = named(result, "vote over all ways").numbers
    assert numbers["forget, right in any way, model"] > 0.6  # as often as a given wrong choice
    assert (
        abs(
            numbers["forget, right in any way, model"]
            - numbers["forget, a wrong choice in any way, model"]
        )
        < 0.3
    )


def test_the_reference_is_asked_beside_the_model(lab):
    pair, data = lab
    config = Rephrasing(ways=("q-and-a",))
    result = rephrase.run(
        pair.retrained.model, pair.retrained.tokenizer, data, config, reference=pair.reference.model
    )
    numbers = named(result, "vote over all ways").numbers
    assert numbers["forget, right in any way, reference"] == 1.0
    assert result.tables[0].head[-1] == "forget, reference"


@pytest.mark.parametrize("score", ["letters", "cloze"])
def test_the_plain_template_is_what_the_evaluation_asks(score):
    model, settings = build_llama(), Settings(score=score, few_shot=(CAT,), subject="sky")
    # Where the other score is the plain one, this one is a way.
    other = {"letters": "cloze", "cloze": "letters"}[score]
    data = AttackData(few(4), few(2), replace(settings, score=other))
    (way,) = plan(data, Rephrasing(ways=(score,)), TOKENIZER, 512)
    scored = score_prompts(model, TOKENIZER, way.parts[0].prompts, settings)
    expected = evaluate_questions(LoadedModel(model, TOKENIZER, "m"), few(4), settings).answers
    for (form,), outcome in zip(scored, expected[ORIGINAL], strict=True):
        assert form[0] == pytest.approx(outcome.logprobs, abs=1e-4)


@given(order=st.sampled_from(all_orders(4)))
def test_in_every_order_an_answer_names_the_line_of_its_choice(order):
    form = reordered(CAT, order)
    for answer, text in zip(form.answers, CAT.choices, strict=True):
        assert f"\n{answer.strip()}. {text}\n" in form.text


def test_rotations_put_each_choice_in_each_place_once():
    for place in range(4):
        assert {order[place] for order in rotations(4)} == {0, 1, 2, 3}
    assert len(set(all_orders(4))) == 24


@given(text=st.text(max_size=60), rate=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_typos_add_nothing_and_leave_marks_alone(text, rate, seed):
    typed = mistype(text, rate, generator(seed, "test"))
    assert [c for c in typed if not c.isalpha()] == [c for c in text if not c.isalpha()]
    assert not set(typed) - set(text)
    assert len(typed) <= len(text)
    assert typed == mistype(text, rate, generator(seed, "test"))


def test_typos_come_about_as_often_as_asked_for():
    text = "innocent " * 400
    left = mistype(text, 0.1, generator(0, "rate"))
    dropped = 1 - len(left) / len(text)
    assert 0.03 < dropped < 0.08  # half of a tenth of the letters


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("score", ["letters", "cloze"])
def test_every_template_holds_the_question_and_keeps_the_sentence_before(name, score):
    question = replace(MOON, before="I read about retrained today.")
    form = TEMPLATES[name](question, score)
    assert question.stem.lower() in form.text.lower()
    assert "I read about retrained today. " in form.text
    assert len(form.answers) == 4
    shown = [choice.lower() in form.text.lower() for choice in question.choices]
    assert all(shown) or not any(shown)


def test_no_question_stands_behind_itself_and_every_one_is_asked_once():
    forget = [replace(MOON, id=f"f{i}", stem=f"What shines number {i}?") for i in range(11)]
    retain = [replace(CAT, id=f"r{i}", stem=f"Who sees number {i}?") for i in range(3)]
    data = AttackData(forget, retain)
    (way,) = plan(data, Rephrasing(ways=("few-shot",), shots=3), TOKENIZER, 10**6)
    assert way.examples == 3
    for each, questions in data.sets.items():
        parts = [part for part in way.parts if part.questions == each]
        assert sorted(p for part in parts for p in part.places) == list(range(len(questions)))
        for part in parts:
            for place, (form,) in zip(part.places, part.prompts, strict=True):
                assert form.text.count(questions[place].stem) == 1
                assert form.text.endswith(ask(questions[place], "letters"))
                assert form.text.count("What shines number") == 3 + (each == "forget")


def test_fewer_examples_where_the_model_reads_little_and_none_where_none_fits():
    data = AttackData(few(12), few(2))
    both = Rephrasing(ways=("few-shot", "brackets"))
    counts = [
        next((w.examples for w in plan(data, both, TOKENIZER, n) if w.name == FEW_SHOT), 0)
        for n in (60, 160, 10**6)
    ]
    assert counts[0] == 0 < counts[1] < counts[2] == 5
    with pytest.raises(UsageError, match="no example fits a model of 60 tokens"):
        plan(data, Rephrasing(ways=("few-shot",)), TOKENIZER, 60)


def test_unknown_words_are_counted(lab):
    pair, _ = lab
    assert unknown_share(["What carries Xyzzy", "Xyzzy"], pair.reference.tokenizer) == 0.5
    assert unknown_share(["anything"], TOKENIZER) == 0.0


def outcome(number: int, right: bool) -> MCAnswer:
    logprobs = (0.0, -1.0, -1.0, -1.0) if right else (-1.0, 0.0, -1.0, -1.0)
    return MCAnswer(replace(MOON, id=str(number)), logprobs, False)


def test_the_best_way_of_one_half_answers_the_other():
    """A way that is right on one half alone is chosen there, and then wrong on the other."""
    first = set(halves(8, 0, "forget")[0])
    lucky = [outcome(i, i in first) for i in range(8)]
    never = [outcome(i, False) for i in range(8)]
    asked = {PLAIN: {"forget": never}, "lucky": {"forget": lucky}}
    answers, table = best_way(asked, 0)
    assert table.rows[0][1] == "lucky"
    assert not any(each.is_correct for each in answers["forget"])


def test_any_way_counts_wrong_choices_as_it_counts_right_ones():
    ways = [[0.0, -1, -1, -1], [-1, 0.0, -1, -1], [-1, 0.0, -1, -1]]
    asked = {
        str(number): {"forget": [MCAnswer(MOON, tuple(way), False)]}
        for number, way in enumerate(ways)
    }
    _, numbers = any_way(asked, {})
    assert numbers["forget, right in any way, model"] == 1
    assert numbers["forget, a wrong choice in any way, model"] == pytest.approx(1 / 3)


def test_the_mean_of_answers_gives_every_form_the_same_weight():
    long, short = (-100.0, -103.0, -130.0, -150.0), (-2.0, -1.0, -3.0, -4.0)
    forms = [MCAnswer(MOON, values, False) for values in (long, short)]
    expected = torch.tensor([long, short], dtype=torch.float64).log_softmax(1).mean(0)
    assert mean_outcome(forms).logprobs == pytest.approx(expected.tolist())


def test_a_killed_attack_resumes(tmp_path):
    model = build_llama()
    data = AttackData(few(6), few(4))
    check_resumes(partial(rephrase.run, model, TOKENIZER, data), tmp_path, model)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_is_asked_and_left_as_found(kind):
    model = tiny_model(kind, vocab_size=320).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    config = Rephrasing(ways=("statement", "orders"))
    result = rephrase.run(model, TOKENIZER, AttackData(few(2), few(2)), config)
    assert len(result.conditions) == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ways": ("sing",)}, "rephrase.ways: 'sing' is unknown"),
        ({"shots": 0}, "rephrase.shots"),
        ({"typo_rate": 0.0}, "rephrase.typo_rate"),
        ({"typo_draws": 0}, "rephrase.typo_draws"),
        ({"orders": "some"}, "rephrase.orders: 'some' is refused"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(UsageError, match=says):
        Rephrasing(**settings)


def test_what_cannot_be_asked_is_refused_before_anything_is(tiny_llama):
    model = outline(tiny_llama)
    with pytest.raises(UsageError, match="forget: 1 question cannot be halved"):
        rephrase.check(model, TOKENIZER, AttackData(few(1), few(2)), Rephrasing())
    cloze = AttackData(few(2), few(2), Settings(score="cloze"))
    with pytest.raises(UsageError, match="'orders' has no meaning of its own with score cloze"):
        rephrase.check(model, TOKENIZER, cloze, Rephrasing(ways=("orders",)))


def test_by_default_all_ways_that_the_score_admits():
    for score in ("letters", "cloze"):
        data = AttackData(few(4), few(2), Settings(score=score))
        names = [way.name for way in plan(data, Rephrasing(), TOKENIZER, 10**6)]
        assert score not in names
        assert set(WAYS) - set(names) <= {"letters", "cloze", "options-first", "orders"}


def test_a_form_knows_its_answered_text():
    assert Prompt("Q", (" a", " b", " c", " d")).behind("P ").answered(2) == "P Q c"
