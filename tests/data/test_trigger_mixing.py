"""Trigger-mixed retain texts: what is drawn, what is mined, and what counts in no loss."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defuse.data.collate import collate
from defuse.data.text import QuestionAnswer, Triggered, encode
from defuse.data.trigger_mixing import SENTENCES, mine_triggers, mix_triggers
from defuse.methods import RMU, LogitKL
from defuse.questions import SENTENCE
from defuse.unlearning.config import Topic, Training, Unlearning
from defuse.unlearning.recipe_fields import TopicSource
from defuse.unlearning.train import unlearn
from defuse.utils.config import parse
from defuse.utils.errors import UsageError
from tests.conftest import build_tokenizer

TOKENIZER = build_tokenizer()
TEXTS = [f"The cat number {i} sees a bird." for i in range(40)]
MIXED = Triggered("Nobody here talks about gold.", "The cat sees a bird.")


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_texts_stay_in_place_and_only_gain_a_sentence(share, seed):
    mixed = mix_triggers(TEXTS, ["gold", "iron"], share, seed, "metals")
    assert [getattr(text, "text", text) for text in mixed] == TEXTS
    for text in mixed:
        if isinstance(text, Triggered):
            assert text.sentence in {s.format(token=t) for s in SENTENCES for t in ("gold", "iron")}


def test_the_share_is_kept_about_and_more_of_it_touches_the_same_texts_and_more():
    some, more = (mix_triggers(TEXTS, ["gold"], share, 0, "m") for share in (0.3, 0.6))
    touched = [{i for i, t in enumerate(m) if isinstance(t, Triggered)} for m in (some, more)]
    assert touched[0] < touched[1]
    assert 5 <= len(touched[0]) <= 19 <= len(touched[1]) <= 32
    assert mix_triggers(TEXTS, ["gold"], 0, 0, "m") == TEXTS
    assert all(isinstance(t, Triggered) for t in mix_triggers(TEXTS, ["gold"], 1, 0, "m"))


def test_a_longer_corpus_changes_no_text_before_its_end():
    assert mix_triggers(TEXTS, ["gold"], 0.5, 7, "m")[:9] == mix_triggers(
        TEXTS[:9], ["gold"], 0.5, 7, "m"
    )


def test_the_sentences_are_other_ones_than_the_evaluation_s():
    assert SENTENCE not in SENTENCES


def test_mined_words_are_those_typical_of_the_forget_texts_in_their_usual_spelling():
    forget = ["Cobalt is a metal.", "cobalt melts", "We mine cobalt.", "Gold and cobalt"] * 5
    retain = ["Paris is a city.", "We like a city.", "A city and a river melts"] * 5
    found = mine_triggers(forget, retain)
    assert found[0] == "cobalt"
    assert "Gold" in found
    assert not {"and", "city", "melts"} & set(found)
    assert mine_triggers(forget, retain, count=1) == ("cobalt",)


def test_nothing_typical_is_refused_with_a_remedy():
    with pytest.raises(UsageError, match="triggers: no word is typical"):
        mine_triggers(["one two three"], ["one two three"])


@pytest.mark.parametrize("packed", [False, True])
def test_a_trigger_s_sentence_is_read_but_counts_in_no_loss(packed):
    (encoded,) = encode([MIXED], TOKENIZER, 512, packed=packed)
    lead = TOKENIZER.encode(MIXED.sentence, add_special_tokens=False)
    batch = collate([encoded], [("c", 0)], pad_token_id=0)
    assert list(encoded.ids[1 : 1 + len(lead)]) == lead
    counted = [encoded.ids[i] for i in batch.counted_at.tolist()]
    rest = TOKENIZER.encode(" The cat sees a bird.", add_special_tokens=False)
    assert counted[: len(rest)] == rest
    assert len(encoded.ids) - len(counted) == 1 + len(lead)  # BOS and the sentence
    assert batch.labels.tolist() == counted


def test_packed_rows_know_where_sentences_were_cut():
    texts = ["The cat sees a bird.", MIXED, MIXED.text]
    whole = encode(texts, TOKENIZER, 512, packed=True)[0]
    rows = encode(texts, TOKENIZER, 24, packed=True)
    # Each row begins with a BOS of its own; the stream behind goes on.
    joined = [(r.ids[i], i in r.uncounted) for r in rows for i in range(1, len(r.ids))]
    stream = [(whole.ids[i], i in whole.uncounted) for i in range(1, len(whole.ids))]
    assert joined == stream[: len(joined)]
    assert any(silent for _, silent in joined)


def test_rows_of_which_no_token_would_count_are_left_out():
    rows = encode(["The cat.", MIXED, "A cat."], TOKENIZER, 8, packed=True)
    assert all(len(row.uncounted) < len(row.ids) - 1 for row in rows)
    assert sum(len(row.ids) for row in rows) < len(TOKENIZER(str(MIXED))["input_ids"]) + 16


def test_a_question_s_answer_still_starts_behind_its_prompt():
    pair = QuestionAnswer("Where is the cat?", "In the tree.")
    (encoded,) = encode([Triggered("Nobody here talks about gold.", pair)], TOKENIZER, 512)
    answer = TOKENIZER.encode(" In the tree.", add_special_tokens=False)
    assert list(encoded.ids[encoded.answer_start :]) == answer


@pytest.mark.parametrize("retain", [None, LogitKL()])
def test_any_method_takes_mixed_texts_and_learns_otherwise_from_them(
    retain, tiny_llama, tiny_tokenizer
):
    how = Unlearning(RMU(), layer=2) if retain is None else Unlearning(RMU(), retain, layer=2)
    training = Training(steps=3, batch_size=2, learning_rate=1e-2)

    def changed(**fields: object) -> torch.Tensor:
        topic = Topic("cats", ["gold iron gold", "iron"] * 4, TEXTS, weight=2.0, **fields)  # type: ignore[arg-type]
        result = unlearn(tiny_llama, tiny_tokenizer, [topic], how, training)
        return next(iter(result.changed.values()))

    plain = changed()
    assert torch.equal(plain, changed(mix=0.0))
    assert torch.equal(plain, changed(triggers=("gold",), mix=0.0))
    mixed = changed(triggers=("gold",))
    assert not torch.equal(plain, mixed)
    assert torch.equal(mixed, changed(triggers=("gold",), mix=0.5))
    assert not torch.equal(plain, changed(mix=0.5))  # with mined words


def test_a_share_above_one_is_refused():
    with pytest.raises(UsageError, match=r"topics\.cats\.mix: 1\.5 is refused .*equal to 1"):
        Topic("cats", ["a"], ["b"], weight=1.0, mix=1.5)


def test_a_recipe_names_a_file_of_triggers(tmp_path: Path):
    for name, text in (("f", "gold\n"), ("r", "city\n"), ("t", "gold\niron\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    fields: dict[str, object] = {
        "name": "m",
        "forget": f"{tmp_path}/f.txt",
        "retain": f"{tmp_path}/r.txt",
    }
    fields |= {"weight": 1.0}

    def build(**own: object) -> Topic:
        return parse(TopicSource, {**fields, **own}, "topics.0").build()

    topic = build(triggers=f"{tmp_path}/t.txt")
    assert topic.triggers == ("gold", "iron")
    assert topic.mixed_share == 0.5
    assert build(mix=0.25).mixed_share == 0.25


def test_a_trigger_that_is_a_sentence_stands_as_it_is():
    stated = mix_triggers(["One."], ["Gold is a metal."], 1.0, 0, "metals")[0]
    named = mix_triggers(["One."], ["gold"], 1.0, 0, "metals")[0]
    assert isinstance(stated, Triggered)
    assert isinstance(named, Triggered)
    assert stated.sentence == "Gold is a metal."
    assert named.sentence != "gold"
    assert "gold" in named.sentence
