"""Rows of files and hub datasets, read lazily."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from defuse.data.hub import read_dataset
from defuse.utils.errors import UsageError
from defuse.utils.files import check_ends, read_utf8
from defuse.utils.json_text import parse_json
from defuse.utils.text import check_text, reason_of

Row = tuple[str, Any]  # its place ("forget.jsonl, line 3") and its content
PARQUET_ROWS = 256  # held at a time
CARD = "README.md"  # only a dataset's folder has one


def source_name(source: object) -> str:
    """A source as text. Raises UsageError for what is neither a name nor a path."""
    if not isinstance(source, str | Path):
        raise UsageError(f"source: {source!r} is no name; give a file or a hub dataset")
    return str(source)


def read_rows(source: str, split: str, *, stream: bool = False) -> Iterable[Row]:
    """The place and the content (text or columns) of each row of a file or dataset.

    A dataset is a hub id or a folder with a dataset card, perhaps with ":config:split"; `stream`
    fetches its rows one by one instead of storing it in the hub's cache. Raises UsageError, on
    reaching it, for a row that cannot be read.
    """
    path, folder = Path(source), Path(source.partition(":")[0])
    reader = READERS.get(path.suffix)
    if reader is None:
        if path.is_file() or (folder.is_dir() and not (folder / CARD).is_file()):
            kinds = ", ".join(READERS)
            raise UsageError(
                f"{source}: is no corpus; give a file of {kinds}, or a dataset's folder with its "
                f"{CARD}"
            )
        return _dataset_rows(source, split, stream)
    if not path.is_file():
        raise UsageError(f"{source}: no such file; give a corpus file or a hub dataset")
    return reader(path)


def as_text(value: object) -> str | None:
    """A cell as text: a number as it is written; None for what is neither."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else None


def read_lines(source: str) -> Iterator[Row]:
    """Every line of a text file, unchanged, with its line break."""
    for number, line in _lines(Path(source)):
        yield f"{source}, line {number}", line


def _lines(path: Path, newline: str | None = None) -> Iterator[tuple[int, str]]:
    check_ends(path)
    try:
        # Lines end at line breaks only; form feeds and the like are part of a line.
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield from enumerate(file, start=1)
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError, too
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _txt_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        yield f"{path}, line {number}", line.strip()


def _jsonl_rows(path: Path) -> Iterator[Row]:
    """One JSON value per line; if the first line is not JSON, the lines are plain texts.

    A file whose first line only begins a JSON value is read whole.
    """
    plain: bool | None = None
    for number, line in _lines(path):
        if line.strip():
            if plain is None and _is_pretty_printed(path, line):
                yield from _whole_json_rows(path)
                return
            where = f"{path}, line {number}"
            plain = _is_plain(line) if plain is None else plain
            yield where, _plain(where, line.strip()) if plain else _json(where, line)


def _is_pretty_printed(path: Path, line: str) -> bool:
    """Whether the file is one JSON value over several lines, of which `line` is the first."""
    if not line.lstrip().startswith(("{", "[")):
        return False
    try:
        parse_json(line)
    except ValueError:
        try:
            parse_json(read_utf8(path))
        except ValueError:
            return False
        return True
    return False


def _whole_json_rows(path: Path) -> Iterator[Row]:
    """The rows of one JSON value: a list, or an object around a list; else it is a row itself."""
    value = _json(str(path), read_utf8(path))
    if isinstance(value, dict):
        lists = [each for each in value.values() if isinstance(each, list)]
        rows = [each for each in lists if all(isinstance(row, dict) for row in each)]
        value = rows[0] if len(rows) == 1 and len(lists) == 1 else [value]
    for number, row in enumerate(value, start=1):
        yield f"{path}, item {number}", row


def _is_plain(line: str) -> bool:
    """Whether a line is plain text; what begins like a JSON object is a broken one."""
    if line.lstrip().startswith("{"):
        return False
    try:
        parse_json(line)
    except ValueError:
        return True
    return False


def _plain(where: str, line: str) -> str:
    if line.startswith("{"):
        raise UsageError(
            f"{where}: begins like a JSON object, but the file with plain text; keep the two "
            "apart, or read all lines unchanged with raw_lines: true"
        )
    return line


def _json_rows(path: Path) -> Iterator[Row]:
    first = next((line for _, line in _lines(path) if line.strip()), "")
    if first.lstrip().startswith("["):
        yield from _whole_json_rows(path)
    else:
        yield from _jsonl_rows(path)


def _json(where: str, text: str) -> Any:  # noqa: ANN401 (anything json can hold)
    try:
        value = parse_json(text)
        if "\\u" in text:  # only an escape can be half a character
            check_text(value, where)
        return value
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{where}: is not valid JSON ({error}); correct or remove it") from error


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.DictReader((line for _, line in _lines(path, newline="")), strict=True)
    try:
        for value in reader:
            yield f"{path}, line {reader.line_num}", value
    except csv.Error as error:
        raise UsageError(
            f"{path}, line {reader.line_num}: is not valid CSV ({error}); correct it, or give the "
            "texts as .jsonl or .parquet"
        ) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", value
    except (OSError, ArrowException) as error:
        raise UsageError(f"{path}: is no readable parquet file ({reason_of(error)})") from error


def _dataset_rows(source: str, split: str, stream: bool) -> Iterator[Row]:
    for number, value in enumerate(read_dataset(source, split, stream=stream), start=1):
        yield f"{source}, row {number}", value


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _txt_rows,
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
