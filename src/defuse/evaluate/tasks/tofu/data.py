"""TOFU's data: question-answer pairs to teach and to unlearn, and questions to ask.

Each author has 20 consecutive questions. `forget01` is part of `forget05`, which is part of
`forget10`; `retain99`, `retain95` and `retain90` are the rest of `full`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defuse.data.corpora import load_texts
from defuse.data.readers import READERS, read_rows
from defuse.data.text import QuestionAnswer
from defuse.utils.errors import UsageError

HUB = "locuslab/TOFU"
RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
FORGET_OF = {retain: forget for forget, retain in RETAIN_OF.items()}
PER_AUTHOR = 20
# The question sets; the last two are about real people and facts.
FORGET, RETAIN, REAL_AUTHORS, WORLD_FACTS = SETS = (
    "forget",
    "retain",
    "real_authors",
    "world_facts",
)


@dataclass(frozen=True)
class Item:
    """A question with its answer, a paraphrase of the answer, and wrong answers in the same form.

    Where the data has no paraphrase (real authors, world facts), `paraphrased` is the answer
    itself, as in TOFU's config/eval_everything.yaml.
    """

    question: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]


def check_part(forget: str) -> None:
    """Raise UsageError for a forget part that TOFU does not have."""
    if forget not in RETAIN_OF:
        raise UsageError(f"forget: {forget!r} is not a part of TOFU; use one of {_list(RETAIN_OF)}")


def load_pairs(source: str, part: str) -> list[QuestionAnswer]:
    """Read the pairs of forget01 to forget10, retain99 to retain90, or full.

    `source`: a hub id or a folder with TOFU's files. From a folder without retain99, retain95 or
    full, they are derived from retain90 and forget10. Raises UsageError for a missing file.
    """
    if not Path(source).is_dir() or _file(source, part) is not None:
        return _pairs(source, part)
    if part == "full":
        return load_pairs(source, "retain90") + load_pairs(source, "forget10")
    if part in ("retain99", "retain95"):
        gone = set(load_pairs(source, FORGET_OF[part]))
        rest = [pair for pair in load_pairs(source, "forget10") if pair not in gone]
        return load_pairs(source, "retain90") + rest
    raise _missing(source, part)


def load_items(source: str, forget: str) -> dict[str, list[Item]]:
    """Read the questions of each of `SETS`; `forget` names the forget set's part."""
    names = {FORGET: f"{forget}_perturbed"} | {name: f"{name}_perturbed" for name in SETS[1:]}
    return {name: _items(source, split) for name, split in names.items()}


def choose_authors(
    pairs: Sequence[QuestionAnswer], count: int | None, skip: int = 0
) -> list[QuestionAnswer]:
    """The pairs of `count` authors (None: all) after the first `skip`.

    Raises UsageError if no author is left.
    """
    end = None if count is None else (skip + count) * PER_AUTHOR
    chosen = list(pairs[skip * PER_AUTHOR : end])
    if not chosen:
        raise UsageError(f"skip_authors: {skip} leaves no author; the part has {len(pairs) // 20}")
    return chosen


def items_about(items: Sequence[Item], pairs: Collection[QuestionAnswer]) -> list[Item]:
    """The items whose questions are among `pairs`, so that a model taught those can know them."""
    known = {pair.question for pair in pairs}
    return [item for item in items if item.question in known]


def _pairs(source: str, part: str) -> list[QuestionAnswer]:
    texts = load_texts(_place(source, part))
    pairs = [text for text in texts if isinstance(text, QuestionAnswer)]
    if len(pairs) < len(texts):
        raise UsageError(
            f"{source}: {part} has texts that are not question-answer pairs; use TOFU's files"
        )
    return pairs


def _items(source: str, split: str) -> list[Item]:
    rows = read_rows(_place(source, split), "train")
    return [_item(where, row) for where, row in rows]


def _item(where: str, row: Mapping[str, Any]) -> Item:
    try:
        wrong = row["perturbed_answer"]
        wrong = [wrong] if isinstance(wrong, str) else wrong
        right = row.get("paraphrased_answer") or row["answer"]
        texts = (row["question"], row["answer"], right, *wrong)
        question, answer, right, *wrong = (str(text).strip() for text in texts)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{where}: is not a TOFU row with question, answer and perturbed_answer ({error})"
        ) from error
    if not (question and answer and wrong and all(wrong)):
        raise UsageError(f"{where}: has a blank text or no wrong answer; correct or remove it")
    return Item(question, answer, right, tuple(wrong))


def _place(source: str, name: str) -> str:
    """What `read_rows` reads: a file of the folder, or a config of the hub dataset."""
    if not Path(source).is_dir():
        return f"{source}:{name}"
    file = _file(source, name)
    if file is None:
        raise _missing(source, name)
    return str(file)


def _file(source: str, name: str) -> Path | None:
    paths = (Path(source) / f"{name}{suffix}" for suffix in READERS)
    return next((path for path in paths if path.is_file()), None)


def _missing(source: str, name: str) -> UsageError:
    return UsageError(f"data: {source} has no {name}.json; give TOFU's folder, or {HUB}")


def _list(names: Collection[str]) -> str:
    return ", ".join(names)
