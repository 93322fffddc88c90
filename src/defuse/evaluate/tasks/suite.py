"""A benchmark as frozen data: its subjects, where their questions lie, and how they are weighed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from defuse.questions import Perturbation
from defuse.utils.errors import UsageError

# Thaker et al. (2410.02879) put the token into one wrong choice. The control has as many parts,
# and as many token ids for the tokenizers of Mistral-7B and Zephyr-7B (8); how frequent either is
# in the models' training texts is not known.
PERTURBATION = Perturbation(("SARS-CoV-2",), "choice", ("Newcastle-upon-Tyne",))


@dataclass(frozen=True)
class Subject:
    """`config` of the hub dataset, also in file names; `about` stands in the description line."""

    name: str
    config: str
    about: str


@dataclass(frozen=True)
class Suite:
    """Questions by subject.

    `hub` is their dataset, `files` where a local folder, or the folder `home` in it, may keep a
    subject's questions of a split: the first pattern that is there. `examples` is the split of
    few-shot examples. Each of `groups` has an accuracy of its own, every question counting once.
    """

    name: str
    hub: str
    home: str
    files: tuple[str, ...]
    subjects: tuple[Subject, ...]
    groups: Mapping[str, Sequence[str]]
    examples: str | None = None
    perturbation: Perturbation | None = None

    def only(self, names: Sequence[str]) -> "Suite":
        """The suite of some subjects; a group that lost some says so in its name.

        Raises UsageError for a name that is no subject's.
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
