"""Question files of every kind give the same questions; prompts are lm-eval's, byte for byte."""

import csv
import json
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase

import pytest
from benchmarks.lm_eval_reference import TASKS
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks._yaml_loader import load_yaml

from defuse.questions import (
    Question,
    ask,
    chance,
    continuations,
    few_shot_part,
    letters,
    load_questions,
)
from defuse.questions.prompts import description
from defuse.utils.errors import UsageError

ROWS = [
    {"question": "Which is a cat?", "choices": ["dog", "lion", "ant", "fly"], "answer": 1},
    {"question": 'A "quoted",\nbroken line?', "choices": ["a", "b, c", "", "d"], "answer": 3},
]
EXPECTED = [(r["question"], tuple(r["choices"]), r["answer"]) for r in ROWS]
MMLU_WITHOUT_HEADER = (
    'Which is a cat?,dog,lion,ant,fly,B\n"A ""quoted"",\nbroken line?",a,"b, c",,d,D\n'
)
MMLU_WITH_HEADER = "question,choice0,choice1,choice2,choice3,answer\n" + (
    MMLU_WITHOUT_HEADER.replace("fly,B", "fly,1").replace("d,D", "d,3")
)
OTHER_ORDER = """answer,A,B,C,D,question
B,dog,lion,ant,fly,Which is a cat?
D,a,"b, c",,d,"A ""quoted"",
broken line?"
"""
FILES = {
    "plain.csv": MMLU_WITHOUT_HEADER,
    "header.csv": MMLU_WITH_HEADER,
    "bom.csv": "\ufeff" + MMLU_WITH_HEADER,
    "order.csv": OTHER_ORDER,
    "wmdp.json": json.dumps(ROWS),
    "rows.jsonl": "\n".join(json.dumps(row) for row in ROWS),
    "letters.jsonl": "\n".join(json.dumps(row | {"answer": "ABCD"[row["answer"]]}) for row in ROWS),
}


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_questions(tmp_path: Path, name: str) -> None:
    questions = load_questions(write(tmp_path, name, FILES[name]))
    assert [(q.stem, q.choices, q.answer) for q in questions] == EXPECTED
    stem = name.split(".")[0]
    assert [q.id for q in questions] == [f"{stem}/0", f"{stem}/1"]


def test_parquet_as_hub_datasets_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    Dataset.from_list([row | {"subject": "cats"} for row in ROWS]).to_parquet(path)
    questions = load_questions(str(path))
    assert [(q.stem, q.choices, q.answer) for q in questions] == EXPECTED
    assert {q.subject for q in questions} == {"cats"}


def test_a_hub_dataset_takes_the_subject_as_its_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load_dataset(*place: str, split: str, streaming: bool) -> Dataset:
        assert not streaming  # questions are kept for the next model
        asked.append((*place, split))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(load_questions("cais/mmlu", subject="college_biology")) == 2
    assert len(load_questions("cais/wmdp:wmdp-bio", subject="biology")) == 2
    assert len(load_questions("cais/mmlu:all:dev")) == 2
    assert asked == [
        ("cais/mmlu", "college_biology", "test"),
        ("cais/wmdp", "wmdp-bio", "test"),
        ("cais/mmlu", "all", "dev"),
    ]


def test_limit_takes_the_first_and_the_subject_filters_without_renaming(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"subject": s} for s in ("high_school", "cats", "high_school")]
    source = write(tmp_path, "q.jsonl", "\n".join(map(json.dumps, rows)))
    assert [q.id for q in load_questions(source, limit=2)] == ["q/0", "q/1"]
    assert [q.id for q in load_questions(source, subject="high school")] == ["q/0", "q/2"]
    assert [q.id for q in load_questions(source, subject="cats", limit=5)] == ["q/1"]


BAD = {
    "one choice": ('{"question": "x", "choices": ["a"], "answer": 0}', "line 1: has 1 choices"),
    "27 choices": (json.dumps(ROWS[0] | {"choices": ["a"] * 27}), "27 choices; give 2 to 26"),
    "columns": ('{"question": "x", "A": "a", "C": "c", "answer": 0}', "has 1 choices"),
    "no choices": ('{"question": "x", "answer": 0}', "has 0 choices"),
    "a text": ('{"question": "x", "choices": "ab", "answer": 0}', "choices are 'ab'"),
    "answer 4": (
        '{"question": "x", "choices": ["a", "b", "c", "d"], "answer": 4}',
        "answer is 4; give 0 to 3",
    ),
    "answer E": ('{"question": "x", "choices": ["a", "b", "c", "d"], "answer": "E"}', "or A to D"),
    "no answer": ('{"question": "x", "choices": ["a", "b", "c", "d"]}', "answer is None"),
    "no question": ('{"choices": ["a", "b", "c", "d"], "answer": 0}', "question is None"),
    "truth": ('{"question": "x", "choices": [true, "b"], "answer": 0}', "list of texts"),
    "not json": ('\n{"question"', "line 2"),
    "a list": ("[1, 2]", "question"),
    "empty": ("", "no question"),
    "twins": ("\n".join([json.dumps(ROWS[0] | {"id": "x"})] * 2), "'x' occurs twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_refused_naming_file_and_row(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    source = write(tmp_path, "bad.jsonl", text)
    with pytest.raises(UsageError, match=message) as error:
        load_questions(source)
    assert "bad.jsonl" in str(error.value)


def test_bad_csv_is_refused_with_its_line(tmp_path: Path) -> None:
    source = write(tmp_path, "bad.csv", "x,a,b,c,d,A\nx,a,b,c,A\n")
    with pytest.raises(UsageError, match=r"bad.csv, line 2: has 5 columns"):
        load_questions(source)


def test_a_missing_file_or_subject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.csv"):
        load_questions(str(tmp_path / "missing.csv"))
    source = write(tmp_path, "q.jsonl", json.dumps(ROWS[0] | {"subject": "dogs"}))
    with pytest.raises(UsageError, match="no question of subject 'cats'"):
        load_questions(source, subject="cats")


def question(**changes: object) -> Question:
    fields = {"id": "q", "stem": " Which? \n", "choices": ("one", " two", "3", "d"), "answer": 2}
    return Question(**(fields | changes))  # type: ignore[arg-type]


def test_golden_letters_prompt() -> None:
    examples = [question(stem="First?", answer=0), question(stem="Second?", answer=3)]
    assert few_shot_part("college_biology", examples, "letters") + ask(question(), "letters") == (
        "The following are multiple choice questions (with answers) about college biology.\n\n"
        "First?\nA. one\nB.  two\nC. 3\nD. d\nAnswer: A\n\n"
        "Second?\nA. one\nB.  two\nC. 3\nD. d\nAnswer: D\n\n"
        "Which?\nA. one\nB.  two\nC. 3\nD. d\nAnswer:"
    )
    assert continuations(question(), "letters") == (" A", " B", " C", " D")


def test_golden_cloze_prompt() -> None:
    assert ask(question(), "cloze") == "Question:  Which? \n\nAnswer:"
    assert few_shot_part(None, [question(stem="W?")], "cloze") == "Question: W?\nAnswer: 3\n\n"
    assert continuations(question(), "cloze") == (" one", "  two", " 3", " d")
    own = question(prompt="Definition: a large cat.\nTerm:", before="I read about x today.")
    assert ask(own, "cloze") == "I read about x today. Definition: a large cat.\nTerm:"


def test_description_lines_are_those_of_every_mmlu_and_wmdp_task() -> None:
    files = (TASKS / "mmlu/default").glob("mmlu_*.yaml")
    tasks = {file.stem.removeprefix("mmlu_"): file for file in files}
    tasks = {name: file for name, file in tasks.items() if "description" in load_yaml(file)}
    assert len(tasks) == 57
    tasks["biology"] = TASKS / "wmdp/wmdp_bio.yaml"
    tasks["cybersecurity"] = TASKS / "wmdp/wmdp_cyber.yaml"
    tasks["chemistry"] = TASKS / "wmdp/wmdp_chem.yaml"
    for name, file in tasks.items():
        assert description(name) == load_yaml(file)["description"], name


def test_a_question_has_2_to_26_choices_and_one_answer() -> None:
    for count in (0, 1, 27):
        with pytest.raises(UsageError, match=f"'q': choices are {count}; give 2 to 26"):
            question(choices=("a",) * count, answer=0)
    with pytest.raises(UsageError, match="answer is 4; give 0 to 3"):
        question(answer=4)
    with pytest.raises(UsageError, match="answer is -1"):
        question(answer=-1)


@given(st.data(), st.integers(2, 26))
def test_any_number_of_choices_reads_alike_from_every_layout(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    texts = data.draw(st.lists(st.text("ab ,", min_size=1), min_size=count, max_size=count))
    answer = data.draw(st.integers(0, count - 1))
    names = data.draw(
        st.sampled_from([ascii_uppercase, ascii_lowercase, [f"choice{i}" for i in range(26)]])
    )
    columns = {"question": "Which?", **dict(zip(names, texts, strict=False))}
    folder = tmp_path_factory.mktemp("questions")
    with (folder / "q.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "answer"])
        writer.writeheader()
        writer.writerow(columns | {"answer": ascii_uppercase[answer]})
    rows = [
        {"question": "Which?", "choices": texts, "answer": answer},
        columns | {"answer": str(answer)},
        columns | {"answer": ascii_lowercase[answer], **dict.fromkeys(names[count:])},
    ]
    source = write(folder, "q.jsonl", "\n".join(map(json.dumps, rows)))
    for each in (*load_questions(str(folder / "q.csv")), *load_questions(source)):
        assert (each.choices, each.answer) == (tuple(texts), answer)


@given(st.integers(2, 26))
def test_letters_and_prompts_of_any_number_of_choices(count: int) -> None:
    choices = tuple(f"text {i}" for i in range(count))
    each = question(stem="Which?", choices=choices, answer=count - 1)
    lines = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, choices, strict=False)]
    assert ask(each, "letters").split("\n") == ["Which?", *lines, "Answer:"]
    assert continuations(each, "letters") == tuple(f" {letter}" for letter in letters(count))
    assert len(letters(count)) == len(continuations(each, "cloze")) == count


def test_chance_is_the_mean_of_one_in_so_many() -> None:
    pair, four = question(choices=("a", "b"), answer=0), question()
    assert chance([four, four]) == 0.25
    assert chance([pair, four]) == 0.375
