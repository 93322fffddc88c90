"""Texts to forget, to keep and to refuse with, from files or the hub."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from defuse.errors import UsageError
from defuse.files import read_utf8
from defuse.texts import Plain, QuestionAnswer

Row = tuple[str, Any]  # where it stands ("forget.jsonl, line 3") and what stands there


def load_texts(source: str, *, field: str | None = None, split: str = "train") -> list[Plain]:
    """The texts of a file or of a hub dataset, blank ones left out.

    A `.txt` file gives a text per line. `.jsonl`, `.json` (a list, or a value per line), `.csv` and
    `.parquet` rows have a column `text` (or the one named by `field`), or `question` and `answer`.
    Anything else is a hub dataset, "id", "id:config" or "id:config:split". Raises UsageError for
    what cannot be read, naming file and line, and for a source without any text.
    """
    texts = [text for row in read_rows(source, split) if (text := _text(row, field)) is not None]
    if not texts:
        raise UsageError(f"{source}: holds no text; give a corpus of at least one")
    return texts


def load_refusals(source: str) -> tuple[str, ...]:
    """Refusals to prefer to a forget text: as `load_texts`, or plain lines whatever the suffix.

    Of question-answer pairs the answers are taken. TOFU's `idontknow.jsonl` holds plain lines.
    """
    path = Path(source)
    if path.suffix == ".jsonl" and path.is_file():
        lines = [line.strip() for line in read_utf8(path).splitlines() if line.strip()]
        if lines and not any(line.startswith("{") for line in lines):
            return tuple(lines)
    texts = load_texts(source)
    return tuple(text.answer if isinstance(text, QuestionAnswer) else text for text in texts)


def _text(row: Row, field: str | None) -> Plain | None:
    """A row's text; None if it is blank."""
    where, value = row
    if isinstance(value, Mapping) and field is None and "text" not in value:
        return _question_answer(where, value)
    wanted = field or "text"
    text = value.get(wanted) if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise UsageError(f"{where}: has no {wanted!r} with text in it; {_columns(value)}")
    return text if text.strip() else None


def _question_answer(where: str, value: Mapping[str, Any]) -> QuestionAnswer:
    parts = [value.get(name) for name in ("question", "answer")]
    question, answer = (p.strip() if isinstance(p, str) else "" for p in parts)
    if not (question and answer):
        raise UsageError(
            f"{where}: has neither 'text' nor 'question' and 'answer'; {_columns(value)}"
        )
    return QuestionAnswer(question, answer)


def _columns(value: object) -> str:
    names = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
    return f"it has {names or 'nothing'}"


def read_rows(source: str, split: str) -> Iterable[Row]:
    """Where each row of a file or hub dataset stands, and its text or its columns."""
    path = Path(source)
    reader = READERS.get(path.suffix)
    if reader is None:
        if path.exists():
            raise UsageError(f"{source}: is no corpus; give a file of {', '.join(READERS)}")
        return _hub_rows(source, split)
    if not path.is_file():
        raise UsageError(f"{source}: no such file; give a corpus file or a hub dataset")
    return reader(path)


def _txt_rows(path: Path) -> Iterator[Row]:
    # Not splitlines(): form feeds and the like stand inside lines.
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        yield f"{path}, line {number}", line.strip()


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _json(where, line)


def _json_rows(path: Path) -> Iterator[Row]:
    text = read_utf8(path)
    if not text.lstrip().startswith("["):
        yield from _jsonl_rows(path)
        return
    for number, value in enumerate(_json(str(path), text), start=1):
        yield f"{path}, item {number}", value


def _json(where: str, text: str) -> Any:  # noqa: ANN401 (anything json can hold)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: is not valid JSON ({error}); mend or remove it") from error


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""), strict=True)
    try:
        for value in reader:
            yield f"{path}, line {reader.line_num}", value
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: is not valid CSV ({error})") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        values = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise UsageError(f"{path}: is no readable parquet file ({error})") from error
    for number, value in enumerate(values, start=1):
        yield f"{path}, row {number}", value


def _hub_rows(source: str, split: str) -> Iterator[Row]:
    from datasets import load_dataset

    name, config, given = (*source.split(":", 2), "", "")[:3]
    try:
        dataset = load_dataset(name, config or None, split=given or split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{source}: is neither a file nor a dataset that could be loaded as id:config:split "
            f"({reason})"
        ) from error
    for number, value in enumerate(dataset, start=1):
        yield f"{source}, row {number}", value


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _txt_rows,
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
