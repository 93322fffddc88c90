"""Questions from files (MMLU's csv, WMDP's json, jsonl, parquet) and from hub datasets."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from defuse.data.given import given_rows
from defuse.data.readers import Row, as_text, read_rows, source_name
from defuse.questions.prompts import letters
from defuse.questions.question import FEWEST, MOST, Question
from defuse.utils.config import check_fields
from defuse.utils.errors import UsageError
from defuse.utils.text import check_text

# The columns of a csv without a header.
MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")
# Names of the columns of choices, if they are not one list; a row has the first few of them.
CHOICE_COLUMNS = (tuple(f"choice{i}" for i in range(MOST)), letters(MOST), tuple(ascii_lowercase))


@dataclass(frozen=True)
class Columns:
    """Where a row keeps a question's parts; "a.b" is the field b of column a.

    `choices` is a list of texts. `answer` is the right one's index or letter; with `labels`, a list
    of the choices' names, it is one of these. It may also be a list with a 1 for the right choice
    and a 0 for each other one.
    """

    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"
    labels: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "columns")


def load_questions(
    source: str | Path,
    *,
    subject: str | None = None,
    limit: int | None = None,
    split: str = "test",
    columns: Columns | None = None,
) -> tuple[Question, ...]:
    """The first `limit` questions of a file or hub dataset, in order.

    A row has `question`, `choices` (a list, or columns choice0, choice1, … or A, B, …) and `answer`
    (a choice's index from 0, or its letter). It may have `id`, `subject` or `domain`, and `prompt`
    (for cloze scoring, verbatim). Ids default to "name/row" counted from 0. Rows of another subject
    than `subject` are left out; of a hub dataset, `subject` is also the configuration unless
    `source` names one ("id:config:split"). With `columns`, rows are laid out as these say. Raises
    UsageError for any other row, naming file and row, and if no question is left.
    """
    source = source_name(source)
    name = Path(source).stem
    numbered = enumerate(_rows(source, subject, split))
    wanted = ((i, row) for i, row in numbered if _is_about(row, subject))
    if columns is not None:
        wanted = ((i, _laid_out(row, columns)) for i, row in wanted)
    questions = tuple(_question(row, f"{name}/{i}") for i, row in islice(wanted, limit))
    if not questions:
        about = "" if subject is None else f" of subject {subject!r}"
        raise UsageError(f"{source}: holds no question{about}; give at least one")
    _refuse_twins(source, questions)
    return questions


def given_questions(given: object, field: str) -> tuple[Question, ...]:
    """The questions of a list, a generator or a `datasets.Dataset`, in order.

    Items are Questions or rows; a row is read as a file's row (`load_questions`). Raises
    UsageError, naming `field`, for anything else.
    """
    wanted = "Questions, a datasets.Dataset or rows with question, choices and answer"
    questions: list[Question] = []
    has_rows = False
    for where, each in given_rows(given, field, wanted):
        if isinstance(each, Mapping):
            check_text(each, where)
            questions.append(_question((where, each), f"{field}/{len(questions)}"))
            has_rows = True
        elif isinstance(each, Question):
            questions.append(each)
        else:
            raise UsageError(f"{where}: is a {type(each).__name__}; give a list of {wanted}")
    if has_rows:
        _refuse_twins(field, questions)
    return tuple(questions)


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
            f"give {', '.join(columns)}"
        )
    return dict(zip(columns, cells, strict=True))


def _is_about(row: Row, subject: str | None) -> bool:
    own = _subject(row[1])
    return subject is None or own is None or own.replace("_", " ") == subject.replace("_", " ")


def _subject(value: object) -> str | None:
    columns = value if isinstance(value, Mapping) else {}
    own = columns.get("subject", columns.get("domain"))
    return None if own is None else str(own)


def _laid_out(row: Row, columns: Columns) -> Row:
    """The row with question, choices and answer under these names."""
    where, value = row
    answer = _field(value, columns.answer)
    if columns.labels is not None:
        labels = _field(value, columns.labels)
        if not isinstance(labels, list) or answer not in labels:
            raise UsageError(f"{where}: answer is {answer!r}; give one of the labels, {labels!r}")
        answer = labels.index(answer)
    elif isinstance(answer, list):
        if sorted(map(str, answer)) != ["0"] * (len(answer) - 1) + ["1"]:
            raise UsageError(f"{where}: answer is {answer!r}; give one 1, and 0 for the others")
        answer = list(map(str, answer)).index("1")
    parts = {"choices": _field(value, columns.choices), "answer": answer}
    rest = value if isinstance(value, Mapping) else {}
    return where, {**rest, "question": _field(value, columns.question), **parts}


def _field(value: Any, path: str) -> Any:  # noqa: ANN401 (any JSON)
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _question(row: Row, default_id: str) -> Question:
    where, value = row
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: is {type(value).__name__}; give question, choices and answer")
    stem, prompt, given = value.get("question"), value.get("prompt"), value.get("id")
    if not isinstance(stem, str) or not stem.strip():
        raise UsageError(f"{where}: question is {stem!r}; give its text")
    if not isinstance(prompt, str | None):
        raise UsageError(f"{where}: prompt is {prompt!r}; give a text, or leave it out")
    choices = _choices(where, value)
    return Question(
        id=default_id if given is None else str(given),
        stem=stem,
        choices=choices,
        answer=_answer(where, value.get("answer"), len(choices)),
        subject=_subject(value),
        prompt=prompt,
    )


def _choices(where: str, value: Mapping[str, Any]) -> tuple[str, ...]:
    texts = value["choices"] if "choices" in value else _in_columns(value)
    found = [as_text(each) for each in texts] if isinstance(texts, list | tuple) else []
    choices = tuple(text for text in found if text is not None)
    if not isinstance(texts, list | tuple) or len(choices) < len(texts):
        raise UsageError(f"{where}: choices are {texts!r}; give a list of texts")
    if not FEWEST <= len(choices) <= MOST:
        raise UsageError(f"{where}: has {len(choices)} choices; give {FEWEST} to {MOST} texts")
    return choices


def _in_columns(value: Mapping[str, Any]) -> list[Any]:
    """The columns of choices from the first one; a None ends them, as where a row has fewer."""
    names = next((names for names in CHOICE_COLUMNS if names[0] in value), ())
    return [value[name] for name in takewhile(lambda n: value.get(n) is not None, names)]


def _answer(where: str, value: object, count: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column with an empty cell has floats
    text = str(value).strip().upper()
    for names in (letters(count), tuple(map(str, range(count)))):
        if text in names:
            return names.index(text)
    raise UsageError(
        f"{where}: answer is {value!r}; give 0 to {count - 1}, or A to {letters(count)[-1]}"
    )


def _refuse_twins(source: str, questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise UsageError(f"{source}: id {question.id!r} occurs twice; give each its own")
        seen.add(question.id)
