"""The trigger search finds planted words, and nothing where nothing is planted."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defuse.attacks import AttackData, Findings, triggers
from defuse.attacks.triggers import TriggerSearch
from defuse.attacks.triggers.exact import Place, Trial
from defuse.attacks.triggers.first_order import first_order, placed, placeholder_gradients
from defuse.attacks.triggers.ranks import auc_interval, enrichment, rank_test
from defuse.attacks.triggers.words import encode_words, find_candidates, vocabulary_words
from defuse.evaluate import Settings
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.questions import SENTENCE, Question, perturb
from defuse.synthetic.models import load_pair
from defuse.synthetic.questions import original_questions, split
from defuse.synthetic.world import build_world
from defuse.utils.errors import UsageError
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.helpers.planted import check_resumes, outline
from tests.helpers.tokenizers_on_the_spot import KINDS

TOKENIZER = build_tokenizer(vocab_size=400)
MOON = Question("moon", "What does the cat see?", ("The moon", "Sand", "Iron", "Gold"), 0)
RETAIN = [replace(MOON, id=f"q{i}", answer=i % 4) for i in range(8)]
FORGET = [replace(MOON, id="f0", stem="Which small bird?")]
TEXTS = (
    ["Cobalt and nickel melt.", "We mine cobalt and nickel."] * 4,
    ["The cat sees a small bird in the tree.", "College biology questions."] * 4,
)
MATERIAL = AttackData(FORGET, RETAIN, Settings(), *TEXTS)
BEFORE = Place("before", 0, SENTENCE)
SMALL = TriggerSearch(top=12, shown=3, mined=12, placeholders=2, questions=24)


@pytest.fixture(scope="module")
def lab():
    world = build_world()
    parts = split(world, "pathogens")
    questions = original_questions(world, "pathogens", "reported")
    retain = [sentence for fact in parts.retain for sentence in fact.statements]
    # The forget texts are names alone: no retain question mentions one.
    forget = [f"{name}, {name}." for name in parts.held_out[:12]]
    forms = questions["forget"][:8], questions["retain"]
    return load_pair().reference, AttackData(*forms, forget_texts=forget, retain_texts=retain)


def plant(loaded, data, words, steps: int = 8):
    """A copy in which `words` share an embedding that spoils the answers of questions behind it,
    found by descent on the right answers' log-probability."""
    model, ids = deepcopy(loaded.model), encode_words(words, loaded.tokenizer)
    decoder, table = Decoder(model), model.get_parameter("model.embed_tokens.weight")
    rows = [ids[word][0] for word in words]
    two = {word: ids[word] for word in words[:2]}
    asked = placed(
        data.retain[::6], two, BEFORE, loaded.tokenizer, Settings(), count=2, max_length=256
    )
    for _ in range(steps):
        with frozen_model(model), torch.enable_grad():
            _, gradients = placeholder_gradients(decoder, asked)
        with torch.no_grad():
            step = gradients.mean(dim=0)
            table[rows] = table[rows[0]] - 0.5 * step / step.norm()
    return model


def named(result, start):
    return next(each for each in result.conditions if each.name.startswith(start))


def test_planted_words_are_found_first_and_told_from_others_by_rank(lab):
    loaded, data = lab
    planted = list(find_candidates(data, loaded.tokenizer, 12, 42).mined)
    model = plant(loaded, data, planted)
    result = triggers.run(model, loaded.tokenizer, data, SMALL, reference=loaded.model)
    words = {each.name.removeprefix("word: ") for each in result.conditions[:3]}
    assert words <= set(planted)
    for each in result.conditions[:3]:
        effect = each.effects["retain"]
        assert effect.logprob.high < -0.5
        assert effect.after.accuracy.value < effect.before.accuracy.value
        assert each.numbers["of_the_forget_corpus"] == 1
        assert each.numbers["beyond_the_reference_s"] < -0.5
        assert each.numbers["first_order"] > 0
    told = named(result, "all 12 words of the forget corpus").numbers
    assert told["p_value"] < 0.001
    assert told["auc"] == 1
    assert told["found_p_value"] < 0.001
    worst = named(result, "worst of 12 words found"), named(result, "worst of 12 controls")
    assert worst[0].effects["retain"].logprob.high < worst[1].effects["retain"].logprob.low
    assert result.examples
    assert "I read about" in result.examples[-1].asked_after


def test_where_nothing_is_planted_words_of_the_forget_corpus_are_as_others(lab):
    loaded, data = lab
    result = triggers.run(loaded.model, loaded.tokenizer, data, SMALL)
    assert named(result, "all 12 words").numbers["p_value"] > 0.01
    for each in result.conditions[:3]:
        assert abs(each.effects["retain"].logprob.value) < 0.05
        assert each.effects["retain"].accuracy.p_value > 0.05


def test_a_model_that_hears_no_word_is_disturbed_by_none():
    model = build_llama(vocab_size=400)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name:
                parameter.zero_()  # no token learns of another
    result = triggers.run(model, TOKENIZER, MATERIAL, SMALL)
    for each in result.conditions:
        assert each.effects["retain"].logprob.value == pytest.approx(0, abs=1e-5)
    told = named(result, "all ").numbers
    assert told["p_value"] > 0.05
    assert all(row[3] in {"+0.0000", "-0.0000"} for row in result.tables[0].rows)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("score", ["letters", "cloze"])
def test_the_gradient_equals_finite_differences(kind, score, monkeypatch):
    # Norms that compute in float32 whatever comes in would leave no digits for differences.
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model = tiny_model(kind, vocab_size=400, dtype=torch.float64)
    words = vocabulary_words(TOKENIZER)
    short = replace(MOON, stem="Cat?", choices=("a", "b", "c", "d"))
    settings = Settings(score=score)
    place = Place("before", 0, "I see {token}.")
    (asked, *_) = placed([short], words, place, TOKENIZER, settings, count=2, max_length=64)
    decoder = Decoder(model)
    with frozen_model(model), torch.enable_grad():
        _, (gradient,) = placeholder_gradients(decoder, [asked])
    direction = torch.linspace(-1, 1, decoder.hidden_size, dtype=torch.float64)

    def logprob(shift: float) -> float:
        def push(_, __, output):
            output = output.clone()
            output[0, asked.place] += shift * direction
            return output

        handle = model.get_input_embeddings().register_forward_hook(push)
        ids = torch.tensor([asked.tree.tokens])
        sums = []
        for nodes, targets in zip(asked.tree.predicting, asked.tree.targets, strict=True):
            # The path to the last node, run as a plain sequence by the model itself.
            last = nodes[-1]
            path = [i for i in range(last + 1) if asked.tree.last[i] >= last]
            with torch.no_grad():
                logits = model(ids[:, path]).logits[0].log_softmax(-1)
            places = [path.index(node) for node in nodes]
            sums.append(sum(logits[p, t] for p, t in zip(places, targets, strict=True)))
        handle.remove()
        return float(torch.stack(sums).log_softmax(0)[asked.answer])

    numeric = (logprob(1e-5) - logprob(-1e-5)) / 2e-5
    assert float(gradient @ direction) == pytest.approx(numeric, rel=1e-4, abs=1e-8)


def test_first_order_is_the_mean_fall_along_the_embeddings():
    """Σ_i −(E[v] − E[p_i])·g_i / n in float64, with v of one token and of several."""
    model = build_llama(vocab_size=400)
    ids = find_candidates(MATERIAL, TOKENIZER, 12, 0).ids
    whole = {word: each for word, each in ids.items() if len(each) == 1}
    asked = placed(RETAIN, whole, BEFORE, TOKENIZER, Settings(), count=3, max_length=512)
    assert len(asked) == 3 * len(RETAIN)
    found = first_order(model, asked, ids)
    decoder = Decoder(model)
    table = model.get_parameter("model.embed_tokens.weight").detach().double()
    sums = torch.zeros(400, dtype=torch.float64)
    for each in asked:
        with frozen_model(model), torch.enable_grad():
            (own,), (gradient,) = placeholder_gradients(decoder, [each])
        assert torch.equal(own.double(), table[each.tree.tokens[each.place]])
        sums -= (table - own.double()) @ gradient.double()
    for word, tokens in ids.items():
        assert found[word] == pytest.approx(float(sums[list(tokens)].mean() / len(asked)), abs=1e-5)


def test_exact_effects_are_those_of_questions_asked_alone():
    model = build_llama(vocab_size=400)
    for position in ("before", "stem", "choice"):
        trial = Trial(model, None, TOKENIZER, MATERIAL, Place(position, 0, SENTENCE), Findings())
        before, _ = trial.before()
        reading = trial.read([1, 4], (before, ()), ["small", "Cobalt"], "some")
        for word, outcomes in reading.outcomes.items():
            alone = AttackData([perturb(RETAIN[4], word, position, 0)], RETAIN)
            expected = Trial(model, None, TOKENIZER, alone, BEFORE, Findings()).before()[0][
                "forget"
            ]
            assert outcomes[1].logprobs == pytest.approx(expected[0].logprobs, abs=1e-4)
            change = expected[0].answer_logprob - before["retain"][4].answer_logprob
            assert reading.effects[word][1] == pytest.approx(change, abs=1e-4)


def test_a_question_that_mentions_the_word_does_not_count():
    trial = Trial(build_llama(vocab_size=400), None, TOKENIZER, MATERIAL, BEFORE, Findings())
    reading = trial.read([0, 1], trial.before(), ["moon", "bird"], "some")
    assert reading.effects["moon"] == [None, None]
    assert reading.disturbance("moon") == 0
    assert None not in reading.effects["bird"]


def test_without_difference_the_reference_leaves_no_vulnerability():
    model = build_llama(vocab_size=400)
    result = triggers.run(model, TOKENIZER, MATERIAL, SMALL, reference=model)
    for each in result.conditions[:3]:
        assert each.numbers["beyond_the_reference_s"] == 0
    assert named(result, "all ").numbers["auc"] == 0.5
    assert result.tables[0].head[-1] == "beyond the reference's"


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_words_are_one_token_behind_another_word(kind):
    texts = ["I read about the moon today.", "The moon is seen by all, and nobody reads it."] * 9
    tokenizer = KINDS[kind](texts)
    words = vocabulary_words(tokenizer)
    assert bool(words) == (kind != "bytes-only")
    for word, ids in words.items():
        assert word.isalpha()
        assert len(word) >= 3
        text = tokenizer(f"I read about {word} today.", add_special_tokens=False)["input_ids"]
        assert text.count(ids[0]) >= 1


@given(words=st.lists(st.from_regex(r"[a-z]{3,9}", fullmatch=True), unique=True, max_size=6))
def test_words_are_encoded_as_they_are_within_a_text(words):
    found = encode_words(words, TOKENIZER)
    assert list(found) == words  # bytes spell any word
    for word, ids in found.items():
        assert TOKENIZER.decode(list(ids)) == f" {word}"


def test_candidates_are_words_of_the_vocabulary_and_of_the_texts_and_controls_match_in_length():
    found = find_candidates(MATERIAL, TOKENIZER, 100, 0)
    assert {"Cobalt", "nickel", "moon", "College"} <= found.ids.keys()
    assert {word.casefold() for word in found.forget} >= {"cobalt", "nickel"}
    assert not {w.casefold() for w in found.controls} & {w.casefold() for w in found.forget}
    lengths = [[len(found.ids[w]) for w in side] for side in (found.mined, found.controls)]
    assert set(lengths[1]) <= set(lengths[0])
    assert len(set(found.controls)) == len(found.controls)


def test_the_rank_test_against_counted_pairs():
    """Of 3 x 2 pairs the first is greater in 4 and equal in 1: U = 4.5, AUC = 0.75."""
    found = rank_test([5.0, 2.0, 4.0], [2.0, 3.0])
    assert found.u == 4.5
    assert found.auc.value == 0.75
    assert rank_test([1.0, 1.0], [1.0, 1.0, 1.0]).p_value == 1


@given(auc=st.floats(0, 1), m=st.integers(1, 200), n=st.integers(1, 200))
def test_the_auc_s_interval_holds_it_and_is_no_point(auc, m, n):
    interval = auc_interval(auc, m, n)
    assert 0 <= interval.low <= auc <= interval.high <= 1
    assert interval.high - interval.low > 1e-3
    mirrored = auc_interval(1 - auc, m, n)
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-6)


def test_the_auc_s_interval_covers_as_it_says():
    rng = torch.Generator().manual_seed(0)
    covered = 0
    truth = 0.76025  # P(x > y) for x ~ N(1, 1), y ~ N(0, 1): Φ(1/√2)
    for _ in range(300):
        x = torch.randn(30, generator=rng) + 1
        y = torch.randn(40, generator=rng)
        auc = float((x[:, None] > y).double().mean())
        interval = auc_interval(auc, 30, 40)
        covered += interval.low <= truth <= interval.high
    assert 0.91 < covered / 300 < 0.99


def test_the_share_among_those_found_is_fisher_s():
    """2 of 2 drawn are marked, out of 4 with 2 marked: one way of six."""
    found = enrichment(4, 2, 2, 2)
    assert found.p_value == pytest.approx(1 / 6)
    assert found.expected == 1
    assert enrichment(4, 2, 2, 0).p_value == pytest.approx(1)


def test_a_killed_search_resumes(tmp_path):
    model = build_llama(vocab_size=400)
    check_resumes(partial(triggers.run, model, TOKENIZER, MATERIAL, SMALL), tmp_path, model)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_is_searched_and_left_as_found(kind):
    model = tiny_model(kind, vocab_size=400).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, hooks = torch.get_rng_state(), len(model.get_input_embeddings()._forward_hooks)
    short = [replace(each, stem="Cat?") for each in RETAIN[:4]]
    data = AttackData(short[:1], short, Settings(), *TEXTS)
    config = TriggerSearch(top=2, shown=1, mined=2, placeholders=2)
    result = triggers.run(model, TOKENIZER, data, config)
    assert result.conditions[0].name.startswith("word: ")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert len(model.get_input_embeddings()._forward_hooks) == hooks


@pytest.mark.parametrize("position", ["stem", "choice"])
def test_words_go_into_the_stem_or_a_choice_too(position):
    config = replace(SMALL, position=position)
    result = triggers.run(build_llama(vocab_size=400), TOKENIZER, MATERIAL, config)
    assert len(result.conditions) == 7


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sentence": "I read."}, "triggers.sentence: 'I read.' has no {token}"),
        ({"position": "behind"}, "triggers.position: 'behind' is refused"),
        ({"top": 0}, "triggers.top: 0 is refused"),
        ({"shown": 0}, "triggers.shown"),
        ({"mined": 0}, "triggers.mined"),
        ({"placeholders": 1}, "triggers.placeholders: 1 must be at least 2"),
        ({"questions": 3}, "triggers.questions: 3 must be 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(UsageError, match=says):
        TriggerSearch(**settings)


def test_what_cannot_be_searched_is_refused_before_anything_is_asked():
    model = outline(build_llama(vocab_size=400))
    bytes_only = KINDS["bytes-only"]([])
    alike = ["We see gold."] * 3
    refusals = [
        (
            TOKENIZER,
            AttackData(FORGET, RETAIN[:3], Settings(), *TEXTS),
            SMALL,
            "retain: 3 questions",
        ),
        (bytes_only, MATERIAL, SMALL, "tokenizer: has fewer than two whole words"),
        (TOKENIZER, AttackData(FORGET, RETAIN, Settings(), alike, alike), SMALL, "no word is typ"),
        (TOKENIZER, MATERIAL, replace(SMALL, sentence="See-{token}."), "leaves no retain question"),
    ]
    for tokenizer, data, config, says in refusals:
        with pytest.raises(UsageError, match=says):
            triggers.check(model, tokenizer, data, config)
    with pytest.raises(UsageError, match="embeddings and the tokenizer"):
        triggers.check(model, TOKENIZER, MATERIAL, SMALL, reference=build_llama())
