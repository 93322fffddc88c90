"""The questions of a suite, from the hub or from a folder."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from defuse.evaluate.answers import Part, Settings
from defuse.evaluate.sources import Asking
from defuse.evaluate.tasks.suite import Subject, Suite
from defuse.questions import Question, load_questions
from defuse.utils.errors import UsageError
from defuse.utils.files import expanded


def load_parts(suite: Suite, data: str | None = None, asking: Asking | None = None) -> list[Part]:
    """Each subject's questions, with its description line and examples.

    `data`: a local folder, or another hub dataset with the same configurations; None means the
    suite's own. Raises UsageError for missing questions, naming every subject.
    """
    asking = asking or Asking()
    _check_examples(suite, asking.few_shot)
    folder = local_folder(data)
    if folder is not None:
        _refuse_missing(suite, folder, suite.split)
        if asking.few_shot:
            _refuse_missing(suite, folder, str(suite.examples))
    return [_part(suite, subject, data, asking) for subject in suite.subjects]


def load_subject(
    suite: Suite,
    subject: Subject,
    data: str | None,
    split: str | None = None,
    limit: int | None = None,
) -> tuple[Question, ...]:
    """A subject's questions; their ids ("virology/7") do not depend on where they come from.

    `split`: None means that of the suite's questions.
    """
    split = split or suite.split
    folder = local_folder(data)
    if folder is None:
        loaded = _from_hub(suite, subject, data or suite.hub, split, limit)
    else:
        files = _find(suite, subject, folder, split)
        loaded = chain.from_iterable(
            load_questions(str(file), limit=limit, columns=suite.columns) for file in files
        )
    return tuple(
        replace(
            question,
            id=f"{subject.config}/{number}",
            subject=subject.name,
            prompt=question.prompt if suite.prompt is None else _prompt(suite.prompt, question),
        )
        for number, question in enumerate(islice(loaded, limit))
    )


def _prompt(template: str, question: Question) -> str:
    return template.replace("{question}", question.stem)


def local_folder(data: str | None) -> Path | None:
    """The folder that `data` names, or None for a hub dataset. Raises UsageError for neither."""
    if data is None:
        return None
    path = expanded(data, "data")
    if path.is_dir():
        return path
    if path.exists() or data.count("/") != 1 or data.startswith((".", "/", "~")):
        raise UsageError(f"data: {data} is no folder; give one, or a hub dataset as owner/name")
    return None


def _part(suite: Suite, subject: Subject, data: str | None, asking: Asking) -> Part:
    questions = load_subject(suite, subject, data, limit=asking.limit)
    examples: tuple[Question, ...] = ()
    if asking.few_shot:
        split = str(suite.examples)
        examples = load_subject(suite, subject, data, split, limit=asking.few_shot)
    if len(examples) < asking.few_shot:
        raise UsageError(
            f"few-shot: is {asking.few_shot}, but {subject.config} has {len(examples)} examples; "
            "give fewer"
        )
    score = asking.score or suite.score
    return Part(questions, Settings(score, subject.about, examples, asking.seed))


def _from_hub(
    suite: Suite, subject: Subject, hub: str, split: str, limit: int | None
) -> tuple[Question, ...]:
    try:
        return load_questions(f"{hub}:{subject.config}:{split}", limit=limit, columns=suite.columns)
    except UsageError as error:
        files = " or ".join(_names(suite, subject, split))
        raise UsageError(f"{error}; without the hub give --data FOLDER with {files}") from error


def _find(suite: Suite, subject: Subject, folder: Path, split: str) -> list[Path]:
    for place in (folder / suite.home, folder):
        for file in _names(suite, subject, split):
            if found := sorted(place.glob(file)):
                return found
    return []


def _names(suite: Suite, subject: Subject, split: str) -> Iterator[str]:
    for pattern in suite.files:
        # A file without a split in its name holds the questions, no examples.
        if "{split}" in pattern or split == suite.split:
            yield pattern.format(name=subject.name, config=subject.config, split=split)


def _refuse_missing(suite: Suite, folder: Path, split: str) -> None:
    if lacking := [s for s in suite.subjects if not _find(suite, s, folder, split)]:
        names = ", ".join(subject.name for subject in lacking)
        files = " or ".join(_names(suite, lacking[0], split))
        raise UsageError(
            f"data: {folder} lacks the {split} questions of {len(lacking)} of "
            f"{len(suite.subjects)} subjects ({names}); add them, such as {files}, or choose "
            "others with --subjects"
        )


def _check_examples(suite: Suite, few_shot: int) -> None:
    if few_shot and suite.examples is None:
        raise UsageError(f"few-shot: {suite.name} has no examples to show; leave it out")
