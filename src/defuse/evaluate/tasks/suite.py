"""A benchmark as frozen data: its subjects, the places of their questions, and its groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from defuse.questions import Columns, Perturbation, Score
from defuse.utils.config import check_fields
from defuse.utils.errors import UsageError

# Thaker et al. (2410.02879) put the token into one wrong choice. The control token has as many
# parts, and as many token ids with the tokenizers of Mistral-7B and Zephyr-7B (8). Nobody knows how
# frequent either is in the models' training texts.
PERTURBATION = Perturbation(("SARS-CoV-2",), "choice", ("Newcastle-upon-Tyne",))


@dataclass(frozen=True)
class Subject:
    """A subject: `config` is its name in the hub dataset and in files.

    `about` is its name in the description line; None means no such line.
    """

    name: str
    config: str
    about: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Suite:
    """The questions of a benchmark, by subject.

    `hub` is their dataset. `files` are patterns for a subject's questions of a split in a local
    folder, or in its folder `home`; the first pattern that matches counts. `groups` get an accuracy
    each, in which every question counts once. `examples` is the split of few-shot examples, `split`
    that of the questions. `columns` says where a row keeps a question's parts; None means
    `question`, `choices` and `answer`. `score` and `prompt` (with `{question}`) say how the
    questions are asked: `prompt` is what cloze scoring puts before the choices.
    """

    name: str
    hub: str
    home: str
    files: tuple[str, ...]
    subjects: tuple[Subject, ...]
    groups: Mapping[str, Sequence[str]]
    examples: str | None = None
    perturbation: Perturbation | None = None
    split: str = "test"
    columns: Columns | None = None
    score: Score = "letters"
    prompt: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def only(self, names: Sequence[str]) -> "Suite":
        """The suite of some subjects; the name of an incomplete group says so.

        Raises UsageError for an unknown subject.
        """
        known = {subject.name: subject for subject in self.subjects}
        if unknown := [name for name in names if name not in known]:
            raise UsageError(
                f"subjects: {', '.join(unknown)} is not in {self.name}; use some of "
                f"{', '.join(known)}"
            )
        groups = {}
        for group, all_names in self.groups.items():
            kept = tuple(name for name in all_names if name in names)
            whole = len(kept) == len(all_names)
            name = group if whole else f"{group}, {len(kept)} of {len(all_names)} subjects"
            groups |= {name: kept} if kept else {}
        return replace(
            self, subjects=tuple(known[name] for name in dict.fromkeys(names)), groups=groups
        )
