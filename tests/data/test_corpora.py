"""Texts from every kind of file, and what becomes of them as tokens."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from defuse.data.corpora import load_refusals, load_texts
from defuse.data.hub import refusal
from defuse.data.readers import PARQUET_ROWS
from defuse.data.text import Encoded, QuestionAnswer, encode
from defuse.utils.errors import UsageError
from tests.conftest import build_tokenizer
from tests.helpers.datasets_on_the_spot import write_dataset

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


def test_a_dataset_is_named_with_configuration_and_split(hub):
    splits = {("small", "train"): [["x", "  "]], ("large", "test"): [["y"], ["z"]]}
    write_dataset(hub / "owner" / "name", splits)
    assert load_texts("owner/name:small") == ["x"]
    assert load_texts("owner/name:large", split="test") == ["y", "z"]
    assert load_texts("owner/name:large:test", limit=1) == ["y"]
    for wrong in ("owner/name", "owner/name:medium", "owner/name:small:test"):
        with pytest.raises(UsageError, match=f"{wrong}: is neither a file nor a dataset"):
            load_texts(wrong)


@pytest.mark.parametrize(
    ("name", "good", "broken"),
    [
        ("a.jsonl", '{"text": "x"}\n\n{"text": "y"}\n', '{"text": \n'),
        ("a.csv", "text\nx\ny\n", '"z" z\n'),
        ("a.txt", "x\n\ny\n", "\udcff"),
    ],
)
def test_a_limit_reads_a_file_no_further(tmp_path, name, good, broken):
    filler = (good.splitlines()[-1] + "\n") * 10_000  # files are read by the buffer, not the line
    path = tmp_path / name
    path.write_text(good + filler + broken, encoding="utf-8", errors="surrogateescape")
    assert load_texts(str(path), limit=2) == ["x", "y"]
    with pytest.raises(UsageError, match=name):
        load_texts(str(path))


def test_a_limit_reads_parquet_no_further(tmp_path):
    texts = [f"text {number}" for number in range(3 * PARQUET_ROWS + 1)]
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": texts})
    parquet.write_table(table, path, row_group_size=PARQUET_ROWS, compression="none")
    assert load_texts(str(path)) == texts
    second = parquet.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[second : second + 50] = bytes(50)
    path.write_bytes(content)
    assert load_texts(str(path), limit=PARQUET_ROWS) == texts[:PARQUET_ROWS]
    with pytest.raises(UsageError, match=r"a\.parquet: is no readable parquet file"):
        load_texts(str(path))


def test_a_limit_fetches_no_more_of_a_dataset(hub):
    folder = write_dataset(hub / "owner" / "name", {("c", "train"): [["x", "y"], ["z"]]})
    (folder / "c" / "train-00001-of-00002.parquet").write_bytes(b"no parquet")
    assert load_texts("owner/name:c", limit=2) == ["x", "y"]
    with pytest.raises(UsageError, match="owner/name:c: is neither"):
        load_texts("owner/name:c", limit=3)


@given(
    st.lists(st.text(), min_size=1).filter(lambda texts: any(map(str.strip, texts))),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_limit_counts_texts_that_are_long_enough(tmp_path_factory, texts, limit, least):
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    kept = [text for text in texts if text.strip() and len(text) >= least]
    if not kept:
        with pytest.raises(UsageError, match=f"holds no text of at least {least} characters"):
            load_texts(str(path), min_characters=least)
        return
    assert load_texts(str(path), min_characters=least) == kept
    assert load_texts(str(path), limit=limit, min_characters=least) == kept[:limit]


def test_lines_of_a_jsonl_file_may_be_texts(tmp_path):
    strings = write(tmp_path, "a.jsonl", '"one\\ntwo"\n"three"\n')
    assert load_texts(strings) == ["one\ntwo", "three"]
    plain = write(tmp_path, "b.jsonl", 'int main() {\n\n  "three" \n42\n')
    assert load_texts(plain) == ["int main() {", '"three"', "42"]
    mixed = write(tmp_path, "c.jsonl", 'int main()\n{"text": "x"}\n')
    with pytest.raises(UsageError, match=r"c\.jsonl, line 2: begins like a JSON object, but"):
        load_texts(mixed)


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_raw_lines_are_those_that_pythons_open_gives(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("corpus") / "cyber.jsonl"
    path.write_text("\n".join(["{", *lines]), encoding="utf-8")
    with path.open(encoding="utf-8") as file:
        expected = [line for line in file if line.strip()]
    assert load_texts(str(path), raw_lines=True) == expected


def gated() -> GatedRepoError:
    """What the hub's library raises for a gate; the response is kept, not looked at."""
    response: Any = SimpleNamespace(headers={}, request=None)
    return GatedRepoError("403 Client Error. Access to dataset is restricted", response=response)


def passed_on(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        gated(),
        passed_on(OSError("train.parquet"), gated()),
        DatasetNotFoundError("Dataset 'owner/name' is a gated dataset on the Hub. Visit …"),
    ],
)
def test_a_gated_dataset_is_refused_with_the_page_to_ask_at(error):
    assert refusal("owner/name:config:train", error) == (
        "owner/name:config:train: is gated; ask for access at "
        "https://huggingface.co/datasets/owner/name, then log in with `hf auth login`"
    )


def test_any_other_trouble_with_a_dataset_is_one_sentence():
    error = DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub.\nSee …")
    assert refusal("owner/name", error) == (
        "owner/name: is neither a file nor a dataset that could be loaded as id:config:split "
        "(Dataset 'owner/name' doesn't exist on the Hub. See …); correct the name, or check the "
        "connection"
    )


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.jsonl", '{"text": 3}\n{"text": null}\n{"text": "b"}', ["3", "b"]),
        ("a.json", '{\n "text": "a"\n}', ["a"]),
        ("a.jsonl", '[\n {"text": "a"},\n {"text": "b"}\n]', ["a", "b"]),
        ("a.json", '{\n "version": 1,\n "data": [{"text": "a"}, {"text": "b"}]\n}', ["a", "b"]),
        ("a.txt", "a\u2028b\x0cc\x85d\ne", ["a\u2028b\x0cc\x85d", "e"]),
    ],
)
def test_good_files_of_other_layouts_are_read(
    tmp_path: Path, name: str, content: str, texts: list[str]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert load_texts(str(tmp_path / name)) == texts


def test_a_dataset_s_folder_is_read_as_its_file_is(tmp_path: Path) -> None:
    """None, NA and numbers are texts in both; a slice of the split is read in either way."""
    folder = tmp_path / "corpus.v2"
    folder.mkdir()
    (folder / "README.md").write_text("---\n---\n")
    (folder / "train.csv").write_text("text\nNone\nNA\n2\nlast\n")
    assert load_texts(str(folder)) == load_texts(str(folder / "train.csv"))
    for limit in (None, 5):
        assert load_texts(f"{folder}:default:train[:2]", limit=limit) == ["None", "NA"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", " \n\n", "a.txt: holds no text"),
        ("a.jsonl", "", "a.jsonl: holds no text"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": ', "a.jsonl, line 3: is not valid JSON"),
        ("a.jsonl", '{"text": "x"}\nplain', "a.jsonl, line 2: is not valid JSON"),
        ("a.jsonl", '{"text": []}', "a.jsonl, line 1: has no 'text' with text in it; it has text"),
        ("a.jsonl", '{"text": "a\\ud83d"}', "a.jsonl, line 1: holds half a character"),
        ("a.jsonl", '{"body": "x"}', "neither 'text' nor 'question' and 'answer'; it has body"),
        ("a.jsonl", '{"question": "x", "answer": " "}', "line 1: answer is ' '; give a text"),
        ("a.jsonl", '{"question": "x", "answer": null}', "line 1: answer is None; give a text"),
        ("a.jsonl", "3", "line 1: has no 'text' with text in it; it has int"),
        ("a.json", "[1, 2", "a.json: is not valid JSON"),
        ("a.json", '[{"text": "x"}, {"a": 1}]', "a.json, item 2: has neither"),
        ("a.csv", "text,b\nx,1\n,2\n", None),
        ("a.csv", "body,b\nx,1\n", "a.csv, line 2: has neither"),
        ("a.csv", 'text\n"x" y\n', "is not valid CSV"),
        ("a.parquet", "text", "a.parquet: is no readable parquet file"),
        ("a.docx", "text", "a.docx: is no corpus; give a file of .txt, .jsonl"),
        (
            "a.csv",
            f"text\n{'x' * 200_000}\n",
            "(field larger than field limit (131072)); correct it",
        ),
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
    with pytest.raises(UsageError, match=r"is no corpus; give .* or a dataset's folder"):
        load_texts(str(tmp_path))
    with pytest.raises(UsageError, match="limit: 0 must be at least 1"):
        load_texts(str(tmp_path / "a.txt"), limit=0)
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
