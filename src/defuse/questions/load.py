"""Question files: MMLU's csv, WMDP's json, jsonl, parquet, and hub datasets of the same columns."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from defuse.data.readers import Row, read_rows
from defuse.questions.prompts import LETTERS
from defuse.questions.question import Choices, Question
from defuse.utils.errors import UsageError

# Without a header a csv has these columns; with one, choices may be choice0..3 or A..D.
MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")
CHOICE_COLUMNS = (tuple(f"choice{i}" for i in range(4)), LETTERS, tuple("abcd"))


def load_questions(
    source: str, *, subject: str | None = None, limit: int | None = None, split: str = "test"
) -> tuple[Question, ...]:
    """The questions of a file or of a hub dataset, in order; the first `limit` of them.

    A row has `question`, `choices` (a list of four, or four columns) and `answer` (0 to 3 or A to
    D), and may have `id`, `subject` or `domain`, and `prompt` (for cloze scoring, verbatim). Ids
    default to "name/row" counted from 0. Rows of another subject than `subject` are left out; of a
    hub dataset, `subject` is also the configuration unless `source` names one ("id:config:split").
    Raises UsageError for anything else, naming file and row, and where no question is left.
    """
    name = Path(source).stem
    numbered = enumerate(_rows(source, subject, split))
    wanted = ((i, row) for i, row in numbered if _is_about(row, subject))
    questions = tuple(_question(row, f"{name}/{i}") for i, row in islice(wanted, limit))
    if not questions:
        about = "" if subject is None else f" of subject {subject!r}"
        raise UsageError(f"{source}: holds no question{about}; give at least one")
    _refuse_twins(source, questions)
    return questions


def _rows(source: str, subject: str | None, split: str) -> Iterable[Row]:
    path = Path(source)
    if path.suffix == ".csv" and path.is_file():
        return _csv_rows(path)
    if path.suffix == "" and not path.exists() and ":" not in source and subject is not None:
        source = f"{source}:{subject}"
    return read_rows(source, split)


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        columns: Sequence[str] | None = None
        try:
            for cells in reader:
                if columns is None and {"question", "answer"} <= set(cells):
                    columns = cells
                    continue
                columns = columns or MMLU_COLUMNS
                if cells:
                    yield f"{path}, line {reader.line_num}", _named(path, reader, columns, cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path}, line {reader.line_num}: is not valid CSV in UTF-8 ({error})"
            ) from error


def _named(path: Path, reader: Any, columns: Sequence[str], cells: list[str]) -> dict[str, str]:  # noqa: ANN401 (csv's reader has no public type)
    if len(cells) != len(columns):
        raise UsageError(
            f"{path}, line {reader.line_num}: has {len(cells)} columns, not {len(columns)}; "
            "give question, four choices and answer"
        )
    return dict(zip(columns, cells, strict=True))


def _is_about(row: Row, subject: str | None) -> bool:
    own = _subject(row[1])
    return subject is None or own is None or own.replace("_", " ") == subject.replace("_", " ")


def _subject(value: object) -> str | None:
    columns = value if isinstance(value, Mapping) else {}
    own = columns.get("subject", columns.get("domain"))
    return None if own is None else str(own)


def _question(row: Row, default_id: str) -> Question:
    where, value = row
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: is {type(value).__name__}; give question, choices and answer")
    stem, prompt, given = value.get("question"), value.get("prompt"), value.get("id")
    if not isinstance(stem, str) or not stem.strip():
        raise UsageError(f"{where}: question is {stem!r}; give its text")
    if not isinstance(prompt, str | None):
        raise UsageError(f"{where}: prompt is {prompt!r}; give a text, or leave it out")
    return Question(
        id=default_id if given is None else str(given),
        stem=stem,
        choices=_choices(where, value),
        answer=_answer(where, value.get("answer")),
        subject=_subject(value),
        prompt=prompt,
    )


def _choices(where: str, value: Mapping[str, Any]) -> Choices:
    columns = next((names for names in CHOICE_COLUMNS if set(names) <= set(value)), ())
    texts = value.get("choices", [value[name] for name in columns])
    is_list = isinstance(texts, list | tuple)
    if not is_list or len(texts) != 4 or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{where}: choices are {texts!r}; give exactly four texts")
    first, second, third, fourth = texts
    return first, second, third, fourth


def _answer(where: str, value: object) -> int:
    text = str(value).strip().upper()
    if text in LETTERS:
        return LETTERS.index(text)
    if text in ("0", "1", "2", "3"):
        return int(text)
    raise UsageError(f"{where}: answer is {value!r}; give 0 to 3, or A to D")


def _refuse_twins(source: str, questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise UsageError(f"{source}: id {question.id!r} comes twice; give each its own")
        seen.add(question.id)
