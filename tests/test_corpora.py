"""Texts from every kind of file, and what becomes of them as tokens."""

import csv
import json
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from defuse.corpora import load_refusals, load_texts
from defuse.errors import UsageError
from defuse.texts import Encoded, QuestionAnswer, encode
from tests.conftest import build_tokenizer

TOFU = Path("../shared/data/tofu")
needs_tofu = pytest.mark.skipif(not TOFU.is_dir(), reason=f"{TOFU} is not there")
TOKENIZER = build_tokenizer()
PAIR = QuestionAnswer("Where is the cat?", "In the tree.")
ROWS = [{"text": "one, two"}, {"text": 'a "quoted"\nline'}]


def write(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_text_file_gives_its_lines_without_the_blank_ones(tmp_path):
    source = write(tmp_path, "a.txt", "one\n\n  \n two\x0cthree \r\n")
    assert load_texts(source) == ["one", "two\x0cthree"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_rows_with_a_text_column_give_that_text(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif suffix == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert load_texts(str(path)) == [row["text"] for row in ROWS]


def test_questions_with_answers_become_pairs_and_a_named_column_is_taken(tmp_path):
    row = {"question": "Where is the cat?", "answer": " In the tree.", "note": "easy"}
    source = write(tmp_path, "a.jsonl", json.dumps(row))
    assert load_texts(source) == [PAIR]
    assert load_texts(source, field="note") == ["easy"]


def test_a_hub_source_names_dataset_config_and_split(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [{"text": "x"}, {"text": "  "}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_texts("owner/name") == ["x"]
    load_texts("owner/name:config", split="dev")
    load_texts("owner/name:config:test")
    assert asked == [
        ("owner/name", None, "train"),
        ("owner/name", "config", "dev"),
        ("owner/name", "config", "test"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", " \n\n", "a.txt: holds no text"),
        ("a.jsonl", "", "a.jsonl: holds no text"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": ', "a.jsonl, line 3: is not valid JSON"),
        ("a.jsonl", '{"text": "x"}\nplain', "a.jsonl, line 2: is not valid JSON"),
        ("a.jsonl", '{"text": 3}', "a.jsonl, line 1: has no 'text' with text in it; it has text"),
        ("a.jsonl", '{"body": "x"}', "neither 'text' nor 'question' and 'answer'; it has body"),
        ("a.jsonl", '{"question": "x", "answer": " "}', "line 1: has neither 'text'"),
        ("a.jsonl", "3", "line 1: has no 'text' with text in it; it has int"),
        ("a.json", "[1, 2", "a.json: is not valid JSON"),
        ("a.json", '[{"text": "x"}, {"a": 1}]', "a.json, item 2: has neither"),
        ("a.csv", "text,b\nx,1\n,2\n", None),
        ("a.csv", "body,b\nx,1\n", "a.csv, line 2: has neither"),
        ("a.csv", 'text\n"x" y\n', "is not valid CSV"),
        ("a.parquet", "text", "a.parquet: is no readable parquet file"),
        ("a.docx", "text", "a.docx: is no corpus; give a file of .txt, .jsonl"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, content, sentence):
    source = write(tmp_path, name, content)
    if sentence is None:
        assert load_texts(source) == ["x"]
        return
    with pytest.raises(UsageError) as refusal:
        load_texts(source)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_files_wrong_bytes_and_unknown_datasets_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.jsonl: no such file"):
        load_texts("gone.jsonl")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"a\.txt: cannot be read as UTF-8"):
        load_texts(str(tmp_path / "a.txt"))
    with pytest.raises(UsageError, match="nobody/nothing: is neither a file nor a dataset"):
        load_texts("nobody/nothing")


def test_refusals_may_be_plain_lines_texts_or_answers(tmp_path):
    plain = write(tmp_path, "a.jsonl", "I don't know.\n\nNo idea.\n")
    assert load_refusals(plain) == ("I don't know.", "No idea.")
    pairs = write(tmp_path, "b.jsonl", '{"question": "Who?", "answer": "No idea."}')
    assert load_refusals(pairs) == ("No idea.",)
    with pytest.raises(UsageError, match="line 2: is not valid JSON"):
        load_refusals(write(tmp_path, "c.jsonl", '{"text": "No."}\nplain\n'))


@needs_tofu
def test_tofu_is_read_as_it_comes():
    pairs = load_texts(str(TOFU / "forget01.json"))
    assert len(pairs) == 40
    assert isinstance(pairs[0], QuestionAnswer)
    assert len(load_refusals(str(TOFU / "idontknow.jsonl"))) == 100


def test_a_plain_text_keeps_the_tokenizers_bos_and_counts_from_the_second_token():
    (one,) = encode(["The cat"], TOKENIZER, 512)
    assert one == Encoded(tuple(TOKENIZER("The cat")["input_ids"]), 1)
    assert one.ids[0] == TOKENIZER.bos_token_id


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_only_the_answer_of_a_pair_counts(question, answer):
    pair = QuestionAnswer(question, answer)
    (one,) = encode([pair], TOKENIZER, 10_000)
    assert one.ids == tuple(TOKENIZER(str(pair))["input_ids"])
    assert TOKENIZER.decode(list(one.ids[one.answer_start :])) == f" {answer}"


@given(st.integers(2, 40))
def test_texts_are_cut_on_the_right(length):
    (one,) = encode(["The cat sees a small bird in the tree." * 5], TOKENIZER, length)
    whole = TOKENIZER("The cat sees a small bird in the tree." * 5)["input_ids"]
    assert one.ids == tuple(whole[:length])


def test_a_text_without_a_token_to_predict_is_refused():
    with pytest.raises(UsageError, match="first 5 tokens leave nothing to predict"):
        encode([PAIR], TOKENIZER, 5)
    with pytest.raises(UsageError, match="nothing to predict"):
        encode([""], TOKENIZER, 512)


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=12), st.integers(3, 20))
def test_packed_rows_are_the_joined_texts_cut_to_length(texts, length):
    rows = encode(texts, TOKENIZER, length, packed=True)
    stream = [
        token
        for text in texts
        for token in [
            *TOKENIZER(text, add_special_tokens=False)["input_ids"],
            TOKENIZER.eos_token_id,
        ]
    ]
    joined = [token for row in rows for token in row.ids[1:]]
    assert joined == stream[: len(joined)]
    assert len(stream) - len(joined) < length / 2
    assert all(row.ids[0] == TOKENIZER.bos_token_id and row.answer_start == 1 for row in rows)
    assert all(len(row.ids) == length for row in rows[:-1])
    assert len(rows) == 1 or len(rows[-1].ids) >= length / 2


def test_packing_without_an_end_token_joins_by_line_breaks():
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    rows = encode(["The cat", "a bird"], tokenizer, 64, packed=True)
    assert [tokenizer.decode(list(row.ids[1:])) for row in rows] == ["The cat\na bird\n"]
