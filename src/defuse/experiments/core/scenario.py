"""An experiment as data: a model, its runs, and the questions that every model answers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defuse.experiments.core.answers import AnswerTable, Slice
from defuse.experiments.core.questions import MCQuestions, Stage
from defuse.unlearning.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFENCES = ("none", "rna", "mixing", "rna+mixing")
LATE = 3 / 4  # of the steps


@dataclass(frozen=True)
class Run:
    """One unlearning of the experiment's model.

    `name` is unique and fits a folder. `group` is shared by runs that differ only in `seed`;
    `base_group` is the group of the same method without a defence. `checkpoints`: the numbers of
    steps after which the model is asked, the last of which ends the run. `questions`: which of the
    scenario's question lists it answers. `settings`: what tells it from its like, for tuning.
    `essence`: more that decides its results, kept with its answers. `label`: what it is called on
    the screen; its name if empty.
    """

    name: str
    group: str
    base_group: str
    method: str
    retain_loss: str
    defence: str
    seed: int
    recipe: Recipe = field(hash=False, compare=False)
    checkpoints: tuple[int, ...]
    defence_settings: tuple[tuple[str, Any], ...] = ()
    settings: tuple[str, ...] = ()
    questions: str = "reported"
    essence: tuple[tuple[str, Any], ...] = field(default=(), hash=False)
    label: str = ""

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        return self.checkpoints[-1]

    def stage(self, step: int) -> Stage:
        """Which questions a checkpoint is asked."""
        if step == self.steps:
            return "final"
        return "late" if step in late(self.checkpoints) else "interim"

    @property
    def said(self) -> str:
        """The settings, and those of the defence, in words."""
        defence = (f"{name}={value}" for name, value in self.defence_settings)
        return " ".join([*self.settings, *defence]) or self.group


@dataclass(frozen=True)
class ModelSource:
    """A model by name, and how it is loaded."""

    name: str
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Layout:
    """What tables, figures and the page show, in this order.

    `slices`: columns and the left panel. `judged`: the position of headlines, and of the right
    panel; None where no forget-token is tried. `matched_at`: positions that checkpoints answer.
    `stem`: the name of table and figure files, in the experiment's `subfolder`. `title` and
    `reading` (how to read the tables) are the page's. `shown_groups`: the groups in the figure;
    None is all. `draw`: draws the figure, as `plots.draw` does, which None stands for;
    `figure_text`: what it shows, in words.
    """

    slices: tuple[Slice, ...]
    judged: str | None
    matched_at: tuple[str, ...] = ()
    stem: str = "results"
    subfolder: str = ""
    title: str = "Experiment"
    reading: str = ""
    shown_groups: Collection[str] | None = None
    draw: "Callable[..., Figure] | None" = None
    figure_text: str = (
        "Left: accuracies by variant. Right: accuracy with a forget-token against accuracy on the "
        "forget set, step by step."
    )


@dataclass(frozen=True)
class Scenario:
    """All that an experiment consists of.

    `questions`: question lists by name; "reported" is what the reference and the retrained model
    answer. `share_activations`: what the frozen blocks compute of texts is shared by runs of one
    process. `keep_models`: write every run's last checkpoint into `folder`/models. `command`: makes
    the experiment again. `least_known`: accuracies of the reference model on every slice below
    which the experiment is refused, and below which it comes with a caution. `mixing_tokens`: the
    forget-tokens that mixing uses; the others test it. `about`: more for the record.
    `headlines`: the file of published conclusions.
    `describe`: more for each run's record, from the run, its last answers (None if it failed) and
    the reference model's. `listing`: writes a table of all records in a folder, after every run
    and for the report, and returns its path.
    """

    name: str
    folder: Path
    model: ModelSource
    runs: tuple[Run, ...]
    questions: Mapping[str, MCQuestions]
    layout: Layout
    command: str
    retrained: str | None = None
    share_activations: bool = False
    keep_models: bool = False
    least_known: tuple[float, float] | None = None
    mixing_tokens: Collection[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    headlines: Path | None = None
    describe: Callable[[Run, AnswerTable | None, AnswerTable], Mapping[str, Any]] | None = None
    listing: Callable[[Path], Path] | None = None

    def with_runs(self, runs: Sequence[Run]) -> "Scenario":
        """The same experiment with other runs."""
        return replace(self, runs=tuple(runs))


def late(steps: Collection[int]) -> tuple[int, ...]:
    """Those of a run's checkpoints that come after three quarters of its steps."""
    return tuple(step for step in sorted(steps) if step >= LATE * max(steps))
