"""Lens and probe on questions asked by their choices' texts (cloze scoring)."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from defuse.attacks import AttackData, Result
from defuse.attacks.lens import Lens, attack, cloze, probe, run
from defuse.evaluate import MCAnswer, Settings, evaluate_questions, wilson
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Question
from defuse.synthetic.world import build_world
from defuse.utils.errors import UsageError
from defuse.utils.random import generator
from tests.conftest import build_llama, build_tokenizer
from tests.helpers.architectures import CONFIGS, tiny_model
from tests.helpers.planted import check_resumes, lab, topped, untouched

TOKENIZER = build_tokenizer()
CLOZE = Settings("cloze")
# Texts of one token and of many, two that begin alike, two that are one token, one twice.
TEXTS = ("a small bird", "a small cat", ".", ".", "A", "the tree", "in the tree.", "Zx q!", "a cat")


def asked(count: int, words: int = 1) -> list[Question]:
    """Questions whose stems are `words` words long, then one word longer each."""
    draws = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(len(TEXTS), generator=draws)[:4].tolist() for _ in range(count)]
    return [
        Question(
            str(i), " ".join(["cat"] * (words + i)) + "?", tuple(TEXTS[k] for k in four), i % 4
        )
        for i, four in enumerate(drawn)
    ]


QUESTIONS = asked(6)


def own_answers(
    model: PreTrainedModel, questions: list[Question], settings: Settings
) -> list[MCAnswer]:
    loaded = LoadedModel(model, TOKENIZER, "model")
    return list(evaluate_questions(loaded, questions, settings).answers[ORIGINAL])


@pytest.mark.parametrize(
    ("settings", "words"),
    [(CLOZE, 36), (Settings("cloze", "sky", tuple(QUESTIONS[:1])), 8)],
    ids=["bare", "few-shot"],
)
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_last_layer_is_the_model_s_own_evaluation(
    kind: str, settings: Settings, words: int
) -> None:
    """Also where a prompt fills the model (64 tokens) and where it is cut."""
    questions = [*QUESTIONS, *asked(18, words)]
    model = tiny_model(kind, vocab_size=320)
    own = own_answers(model, questions, settings)
    prompts = cloze.prompts_of(TOKENIZER, questions, settings, 64)
    values, _ = cloze.look(model, prompts, token_budget=300)
    read = [
        MCAnswer(question, tuple(four), prompt.truncated)
        for question, prompt, four in zip(questions, prompts, values[-1].tolist(), strict=True)
    ]
    assert {outcome.truncated for outcome in own} == {False, True}
    for ours, theirs in zip(read, own, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, rel=1e-4, abs=1e-4)
        assert ours.answer_logprob == pytest.approx(theirs.answer_logprob, abs=1e-4)
        assert (ours.choice, ours.truncated) == (theirs.choice, theirs.truncated)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_layer_is_read_as_in_plain_passes(kind: str) -> None:
    """A question's four prompts one by one: states of the embedding and behind each block."""
    model = tiny_model(kind, vocab_size=320)
    prompts = cloze.prompts_of(TOKENIZER, QUESTIONS, CLOZE, 64)
    values, states = cloze.look(model, prompts)
    head, norm = model.get_output_embeddings(), final_norm(model)
    for place, question in enumerate(QUESTIONS):
        context = f"Question: {question.stem}\nAnswer:"
        start = len(TOKENIZER(context)["input_ids"])
        for number, text in enumerate(question.choices):
            ids = torch.tensor([TOKENIZER(f"{context} {text}")["input_ids"]])
            with torch.no_grad():
                output = model(ids, output_hidden_states=True)
                hidden = torch.cat(output.hidden_states[:-1])
                logits = head(norm(hidden))  # type: ignore[misc]
            cap = getattr(model.config, "final_logit_softcapping", None)
            logits = logits if cap is None else cap * (logits / cap).tanh()
            logits = torch.cat([logits, output.logits])  # the last hidden states are normed
            logprobs = logits[:, start - 1 : -1].log_softmax(-1)
            wanted = ids[0, start:].expand(len(logits), -1)[..., None]
            sums = logprobs.gather(2, wanted).sum(dim=(1, 2)).double()
            torch.testing.assert_close(values[:, place, number], sums, rtol=1e-3, atol=1e-3)
            seen = states[:-1, place, number]
            torch.testing.assert_close(seen, hidden[:, -1], rtol=1e-4, atol=1e-4)


def final_norm(model: torch.nn.Module) -> torch.nn.Module:
    names = ("model.norm", "gpt_neox.final_layer_norm", "transformer.ln_f")
    modules = dict(model.named_modules())
    return next(modules[name] for name in names if name in modules)


@pytest.mark.parametrize("words", [1, 60], ids=["short", "cut"])
def test_a_text_s_state_is_that_of_its_last_token(words: int) -> None:
    """What is cut of a long prompt leaves room for all of the longest text."""
    model = tiny_model("llama", vocab_size=320)
    questions = asked(3, words)
    prompts = cloze.prompts_of(TOKENIZER, questions, CLOZE, 64)
    assert {prompt.truncated for prompt in prompts} == {words > 1}
    _, states = cloze.look(model, prompts)
    for place, question in enumerate(questions):
        context = TOKENIZER(f"Question: {question.stem}\nAnswer:")["input_ids"]
        whole = [
            TOKENIZER(f"Question: {question.stem}\nAnswer: {text}")["input_ids"]
            for text in question.choices
        ]
        skip = max(0, max(map(len, whole)) - 64)
        assert (skip > 0) == (words > 1)
        assert skip < len(context)
        for number, ids in enumerate(whole):
            with torch.no_grad():
                output = model(torch.tensor([ids[skip:]]), output_hidden_states=True)
            expected = torch.stack([each[0, -1] for each in output.hidden_states[:-1]])
            found = states[:-1, place, number]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_half_precision_is_read_in_full() -> None:
    model = build_llama().bfloat16()
    values, states = cloze.look(model, cloze.prompts_of(TOKENIZER, QUESTIONS, CLOZE, 64))
    assert (values.dtype, states.dtype) == (torch.float64, torch.bfloat16)
    assert values.isfinite().all()


@cache
def stated() -> AttackData:
    """The lab's facts as unfinished sentences, which its model finishes right."""
    facts = {fact.id: fact for fact in build_world().facts}

    def as_sentence(question: Question) -> Question:
        fact = facts[question.id]
        sentence = next(each for each in fact.statements if each.endswith(f" {fact.value}."))
        return replace(question, prompt=sentence.removesuffix(f" {fact.value}."))

    _, _, data = lab()
    forget, retain = ([as_sentence(q) for q in questions] for questions in data.sets.values())
    return AttackData(forget, retain, CLOZE)


@cache
def read_topped() -> Result:
    base, tokenizer, _ = lab()
    model = topped()
    with untouched(model, base):
        return run(model, tokenizer, stated(), Lens(folds=2, shuffles=2), reference=base)


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_an_answer_spoilt_by_the_last_layer_is_read_below_it(name: str) -> None:
    base, tokenizer, _ = lab()
    known = evaluate_questions(LoadedModel(base, tokenizer, "base"), stated().sets[name], CLOZE)
    by_name = {each.name: each.effects[name] for each in read_topped().conditions}
    assert by_name["lens, layer 7"].before.accuracy.value < 0.5
    for layer in (5, 6):  # what the base ends with
        after = by_name[f"lens, layer {layer}"].after
        assert list(after.right.values()) == known.correct()
        mean = np.mean(known.answer_logprobs())
        assert after.logprob.value == pytest.approx(mean, abs=1e-4)
    last = by_name["lens, layer 7"]
    assert last.before.right == last.after.right
    assert last.logprob.value == pytest.approx(0, abs=1e-4)
    assert by_name["lens, chosen layer"].after.accuracy.value == 1.0
    assert by_name["lens, chosen layer"].accuracy.p_value < 1e-3


def test_results_have_the_shape_that_letters_give() -> None:
    result = read_topped()
    places = ["embedding", *(f"layer {layer}" for layer in range(8)), "chosen layer"]
    names = [f"{kind}, {place}" for kind in ("lens", "probe") for place in places]
    assert [condition.name for condition in result.conditions] == names
    kinds = ["lens", "probe", "probe, shuffled labels"]
    lines = [line.name for line in result.curves[0].lines]
    assert lines == [*kinds, *(f"reference, {kind}" for kind in kinds)]
    some = next(each for each in result.examples if each.condition == "lens, chosen layer")
    assert some.asked_before in {question.prompt for question in stated().forget}


def test_a_probe_finds_a_planted_mark_in_a_model_and_none_where_there_is_none() -> None:
    """The mark is in the embedding of the right texts, each of one token that occurs once."""
    words = {name: number for number, name in enumerate(["<unk>", *(f"w{i}" for i in range(240))])}
    level = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106 (no password)
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=level, unk_token="<unk>")  # noqa: S106
    numbers = range(0, 240, 4)
    fours = [(f"w{n}", f"w{n + 1}", f"w{n + 2}", f"w{n + 3}") for n in numbers]
    questions = [Question(str(i), "Which?", four, i % 4) for i, four in enumerate(fours)]
    right = [words[question.choices[question.answer]] for question in questions]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    for planted in (False, True):
        model = build_llama(layers=1)
        with torch.no_grad():
            model.get_parameter("model.embed_tokens.weight")[right] += planted * direction
        data = AttackData(questions, questions[:4], CLOZE)
        result = run(model, tokenizer, data, Lens(shuffles=5))
        lines = {line.name: line.y for line in result.curves[0].lines}
        found, control = lines["probe"][0], lines["probe, shuffled labels"][0]
        assert control.low < 0.25 < control.high
        assert (found.value == 1.0) if planted else (found.low < 0.25 < found.high)


def held_out(
    states: torch.Tensor, labels: list[int], fold: list[int], penalty: float
) -> list[list[float]]:
    counts = [4] * len(labels)
    return probe.held_out(probe.features(states, counts), labels, counts, fold, penalty)


def planted_states(count: int, units: int, signal: float) -> tuple[torch.Tensor, list[int]]:
    """Noise, far more of what a question's four share, and a mark on the right ones."""
    draws = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (count,), generator=draws)
    states = torch.randn(count, 4, units, generator=draws)
    states += 30 * torch.randn(count, 1, units, generator=draws)
    direction = torch.randn(units, generator=draws)
    states[torch.arange(count), labels] += signal * direction
    return states, labels.tolist()


def share_found(states: torch.Tensor, labels: list[int]) -> tuple[float, float, float]:
    fold = probe.deal(cloze.strata(labels), 5, generator(0))
    values = torch.tensor(held_out(states, labels, fold, 1.0))
    right = int((values.argmax(dim=1) == torch.tensor(labels)).sum())
    found = wilson(right, len(labels))
    return found.low, found.value, found.high


@pytest.mark.parametrize("units", [10, 500], ids=["few-units", "more-units-than-rows"])
def test_a_probe_finds_planted_truth_and_none_where_there_is_none(units: int) -> None:
    states, labels = planted_states(100, units, 3.0)
    low, value, _ = share_found(states, labels)
    assert value > 0.9
    low, _, high = share_found(*planted_states(100, units, 0.0))
    assert low < 0.25 < high
    low, _, high = share_found(states, cloze.shuffled(labels, [4] * 100, generator(5)))
    assert low < 0.25 < high


def test_what_a_question_s_four_share_plays_no_part() -> None:
    states, labels = planted_states(30, 8, 1.0)
    shift = torch.randn(30, 1, 8, generator=torch.Generator().manual_seed(2))
    fold = probe.deal(cloze.strata(labels), 5, generator(0))
    one, other = (
        torch.tensor(held_out(each, labels, fold, 1.0)) for each in (states, states + 100 * shift)
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_four_are_weighed_as_by_a_plain_fit_of_right_or_wrong() -> None:
    """P(only c is right) ∝ σ(s_c) Π (1 − σ(s_j)) over the others, from scikit-learn's own
    probabilities; all four texts of a question are held out together."""
    states, labels = planted_states(24, 150, 1.0)
    fold = probe.deal(cloze.strata(labels), 3, generator(0))
    assert sorted(fold.count(number) for number in range(3)) == [8, 8, 8]
    found = torch.tensor(held_out(states, labels, fold, 2.0)).numpy()
    rows = states.double().numpy()
    rows = rows - rows.mean(axis=1, keepdims=True)
    rows = rows / rows.reshape(-1, 150).std(axis=0)
    right = np.eye(4)[labels]
    for number in range(3):
        out = np.array(fold) == number
        plain = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000)
        plain.fit(rows[~out].reshape(-1, 150), right[~out].ravel())
        shares = plain.predict_proba(rows[out].reshape(-1, 150))[:, 1].reshape(-1, 4)
        odds = [
            [p[c] * np.prod([1 - p[j] for j in range(4) if j != c]) for c in range(4)]
            for p in shares
        ]
        expected = np.log(odds / np.sum(odds, axis=1, keepdims=True))
        np.testing.assert_allclose(found[out], expected, rtol=2e-2, atol=2e-2)


def test_the_control_does_not_know_that_the_first_is_always_right() -> None:
    drawn = cloze.shuffled([0] * 400, [4] * 400, generator(0))
    assert all(80 < drawn.count(label) < 120 for label in range(4))


def test_a_killed_attack_goes_on(tmp_path: Path) -> None:
    base, tokenizer, _ = lab()
    some = AttackData(stated().forget[:4], stated().retain[:4], CLOZE)
    config = Lens(folds=2, shuffles=1)
    check_resumes(partial(run, base, tokenizer, some, config), tmp_path, base, stops=1)


def test_one_question_is_too_few_for_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack, "ask_all", None)
    data = AttackData(QUESTIONS, QUESTIONS[:1], CLOZE)
    with pytest.raises(UsageError, match="retain: there is one question, and a probe needs two"):
        run(build_llama(), TOKENIZER, data)
