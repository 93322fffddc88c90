"""Texts to forget, to keep and to refuse with: from files or the hub, and as token ids."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from defuse.errors import UsageError


@dataclass(frozen=True)
class QuestionAnswer:
    """A question and its answer; preference losses count the answer's tokens only."""

    question: str
    answer: str

    @property
    def prompt(self) -> str:
        return f"Question: {self.question}\nAnswer:"

    def __str__(self) -> str:
        return f"{self.prompt} {self.answer}"


Text = str | QuestionAnswer
Row = tuple[str, Any]  # where it stands ("forget.jsonl, line 3") and what stands there


@dataclass(frozen=True)
class Encoded:
    """`ids`: a text's tokens. `answer_start`: index of the first that preference losses predict."""

    ids: tuple[int, ...]
    answer_start: int


def load_texts(source: str, *, field: str | None = None, split: str = "train") -> list[Text]:
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
        lines = [line.strip() for line in _read(path).splitlines() if line.strip()]
        if lines and not any(line.startswith("{") for line in lines):
            return tuple(lines)
    texts = load_texts(source)
    return tuple(text.answer if isinstance(text, QuestionAnswer) else text for text in texts)


def encode(
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    packed: bool = False,
) -> list[Encoded]:
    """Token ids, cut after `length` tokens, with special tokens as the tokenizer sets them.

    A question-answer pair becomes "Question: …\\nAnswer: …". `packed` joins all texts, with the
    tokenizer's end-of-text token (else a line break) after each, and cuts the whole into rows of
    just `length` tokens that count throughout; a last row under half of that is left out, unless
    it is the only one. Raises UsageError for a text without a token to predict.
    """
    if packed:
        return _pack(texts, tokenizer, length)
    whole = _tokenise([str(text) for text in texts], tokenizer)
    prompts = [text.prompt for text in texts if isinstance(text, QuestionAnswer)]
    starts = iter(_tokenise(prompts, tokenizer))
    encoded = []
    for text, ids in zip(texts, whole, strict=True):
        pair = isinstance(text, QuestionAnswer)
        start = _shared(next(starts), ids) if pair else 1
        if start >= min(len(ids), length):
            raise UsageError(
                f"text {str(text)[:40]!r}…: its first {length} tokens leave nothing to predict; "
                "raise the topic's length, or leave the text out"
            )
        encoded.append(Encoded(tuple(ids[:length]), start))
    return encoded


def _shared(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """How many tokens of `whole` come from the prompt alone: one may span its end."""
    pairs = zip(prompt, whole, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(whole)))


def _tokenise(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool = True
) -> list[list[int]]:
    if not texts:
        return []
    # A text too long for the model is cut later: no warning about it.
    output = tokenizer(list(texts), add_special_tokens=special, verbose=False)
    ids: list[list[int]] = output["input_ids"]  # type: ignore[assignment]
    return ids


def _pack(texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Encoded]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = _tokenise(["a"], tokenizer)[0][:1]
    start = first if first == [bos] else []
    end = _tokenise(["\n"], tokenizer, special=False)[0] if eos is None else [eos]
    stream: list[int] = []
    for ids in _tokenise([str(text) for text in texts], tokenizer, special=False):
        stream += [*ids, *end]
    room = length - len(start)
    rows = [tuple(start + stream[at : at + room]) for at in range(0, len(stream), room)]
    if len(rows) > 1 and len(rows[-1]) < length / 2:
        rows.pop()
    if not rows or len(rows[-1]) < 2:
        raise UsageError("packed: the texts make less than two tokens; give more text")
    return [Encoded(row, 1) for row in rows]


def _text(row: Row, field: str | None) -> Text | None:
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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _txt_rows(path: Path) -> Iterator[Row]:
    # Not splitlines(): form feeds and the like stand inside lines.
    for number, line in enumerate(_read(path).split("\n"), start=1):
        yield f"{path}, line {number}", line.strip()


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _json(where, line)


def _json_rows(path: Path) -> Iterator[Row]:
    text = _read(path)
    if not text.lstrip().startswith("["):
        yield from _jsonl_rows(path)
        return
    for number, value in enumerate(_json(str(path), text), start=1):
        yield f"{path}, item {number}", value


def _json(where: str, text: str) -> Any:  # noqa: ANN401 (anything json can hold)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: is not valid JSON ({error}); mend or remove it") from error


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_read(path), newline=""), strict=True)
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
