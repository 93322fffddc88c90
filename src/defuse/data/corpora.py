"""Forget texts, retain texts and refusals from files or the hub."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from defuse.data.readers import Row, as_text, read_lines, read_rows, source_name
from defuse.data.text import Plain, QuestionAnswer, Text
from defuse.utils.errors import UsageError, require


def load_texts(
    source: str | Path,
    *,
    field: str | None = None,
    split: str = "train",
    limit: int | None = None,
    min_characters: int = 1,
    max_characters: int | None = None,
    raw_lines: bool = False,
) -> list[Plain]:
    """The texts of a file or of a hub dataset, without blank ones, read only as far as needed.

    A `.txt` file has a text per line. `.jsonl`, `.json` (a list, or a value per line), `.csv` and
    `.parquet` rows have a column `text` (or the one named by `field`), or `question` and `answer`;
    `.jsonl` lines may be plain texts instead. Anything else is a hub dataset, "id", "id:config" or
    "id:config:split" (else `split`), or a folder that holds one. `limit`: the number of texts to
    read; of a hub dataset no more is fetched. `min_characters`: shorter texts are skipped.
    `max_characters`: plain texts are cut after that many. `raw_lines`: each line of a file of any
    kind is a text, unchanged, with its line break. Raises UsageError, with file and line, for what
    cannot be read, and for a source without any text.
    """
    require(limit is None or limit > 0, "limit", limit, "must be at least 1")
    source, part = source_name(source), limit is not None
    rows = read_lines(source) if raw_lines else read_rows(source, split, stream=part)
    texts = (text for row in rows if (text := text_of(row, field)) is not None)
    long = (text for text in texts if len(str(text)) >= min_characters)
    found = [_cut(text, max_characters) for text in islice(long, limit)]
    if not found:
        about = f" of at least {min_characters} characters" if min_characters > 1 else ""
        raise UsageError(f"{source}: holds no text{about}; give a corpus of at least one")
    return found


def _cut(text: Plain, most: int | None) -> Plain:
    return text[:most] if isinstance(text, str) else text


def load_refusals(source: str) -> tuple[str, ...]:
    """Refusals for DPO, read like `load_texts`; of question-answer pairs, the answers.

    TOFU's `idontknow.jsonl` holds plain lines.
    """
    return tuple(map(refusal_of, load_texts(source)))


def refusal_of(text: Text) -> str:
    """A text as a refusal: of a question-answer pair, the answer."""
    return text.answer if isinstance(text, QuestionAnswer) else str(text)


def text_of(row: Row, field: str | None = None) -> Plain | None:
    """The text of a row; None if it is blank. Raises UsageError for a row without one."""
    where, value = row
    if isinstance(value, Mapping) and field is None and "text" not in value:
        return _question_answer(where, value)
    wanted = field or "text"
    text = value.get(wanted) if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and wanted in value and text is None:
        return None  # an empty cell
    text = as_text(text) if isinstance(value, Mapping) else text
    if not isinstance(text, str):
        raise UsageError(f"{where}: has no {wanted!r} with text in it; {_columns(value)}")
    return text if text.strip() else None


def _question_answer(where: str, value: Mapping[str, Any]) -> QuestionAnswer:
    if not {"question", "answer"} <= value.keys():
        raise UsageError(
            f"{where}: has neither 'text' nor 'question' and 'answer'; {_columns(value)}"
        )
    question, answer = ((as_text(value[name]) or "").strip() for name in ("question", "answer"))
    for name, part in (("question", question), ("answer", answer)):
        if not part:
            raise UsageError(f"{where}: {name} is {value[name]!r}; give a text, or leave it out")
    return QuestionAnswer(question, answer)


def _columns(value: object) -> str:
    names = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
    return f"it has {names or 'nothing'}"
