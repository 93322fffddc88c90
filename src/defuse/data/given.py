"""Texts and rows given in Python: read as files are, or refused."""

import sys
from collections.abc import Iterator, Mapping, Sequence

from defuse.data.corpora import refusal_of, text_of
from defuse.data.readers import Row
from defuse.data.text import Text
from defuse.utils.errors import UsageError
from defuse.utils.text import check_text

NO_LISTS = (str, bytes, bytearray, memoryview)
TEXTS = "strings or QuestionAnswers, a datasets.Dataset or rows such as {'text': …}"


def given_texts(given: object, field: str) -> tuple[Text, ...]:
    """The texts of a list, a generator or a `datasets.Dataset`, in order.

    Items are strings, QuestionAnswers or rows; a row is read as a file's row (`load_texts`), and
    left out if its text is blank. Raises UsageError, naming `field`, for anything else: it would be
    trained on as what `str` makes of it.
    """
    texts: list[Text] = []
    for where, each in given_rows(given, field, TEXTS):
        if isinstance(each, Mapping):
            check_text(each, where)
            text = text_of((where, each))
            texts += [] if text is None else [text]
        elif isinstance(each, Text):
            check_text(str(each), where)
            texts.append(each)
        else:
            raise UsageError(f"{where}: is a {type(each).__name__}; give a list of {TEXTS}")
    return tuple(texts)


def given_strings(given: object, field: str) -> tuple[str, ...]:
    """The same, where a question with its answer is one string."""
    return tuple(map(str, given_texts(given, field)))


def given_refusals(given: object, field: str) -> tuple[str, ...]:
    """The same for refusals: of a question with its answer, the answer (as `load_refusals`)."""
    return tuple(map(refusal_of, given_texts(given, field)))


def given_text(given: object, field: str) -> str:
    """One text. Raises UsageError for anything but a string that is not blank."""
    if not isinstance(given, str) or not given.strip():
        raise UsageError(f"{field}: {given!r} is no text; give one string")
    check_text(given, field)
    return given


def given_rows(given: object, field: str, wanted: str) -> Iterator[Row]:
    """The place and the value of each item of `given`.

    Raises UsageError for what is no list, generator or `datasets.Dataset`; `wanted` says what the
    list holds. Other collections have no order, or other items than a list of their rows.
    """
    is_list = isinstance(given, Sequence | Iterator) and not isinstance(given, NO_LISTS)
    if not is_list and not _is_dataset(given):
        names = ", ".join(map(str, given)) if isinstance(given, Mapping) else ""
        hint = f" (it has {names})" if names else ""
        raise UsageError(
            f"{field}: {type(given).__name__} is no list{hint}; give a list of {wanted}"
        )
    for place, each in enumerate(given):  # type: ignore[arg-type] (one of the three)
        yield f"{field}, item {place}", each


def _is_dataset(given: object) -> bool:
    library = sys.modules.get("datasets")  # imported by whoever has one
    return library is not None and isinstance(given, (library.Dataset, library.IterableDataset))
