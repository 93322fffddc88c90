"""Do one run: unlearn, ask along the way, and write each checkpoint's answers once and whole."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from defuse.experiments.core.answers import CLEAN, FORGET, answers_path
from defuse.experiments.synthetic.exam import Exam, Paper, Part, Split, build_exam, shuffled, split
from defuse.experiments.synthetic.grid import Run, Setting
from defuse.experiments.synthetic.world import World
from defuse.models.load import LoadedModel
from defuse.unlearning.train import unlearn
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json

ON_THE_WAY = (
    FORGET,
    CLEAN,
    *(f"{position}/{t}" for position in ("before", "statement") for t in ("forget", "control")),
)

OnCheckpoint = Callable[[Run, int], None]


@dataclass(frozen=True)
class Bench:
    """What all runs of one experiment share."""

    base: LoadedModel
    world: World
    forget: str
    part: Part
    folder: Path

    @cached_property
    def parts(self) -> Split:
        return split(self.world, self.forget)

    @cached_property
    def exam(self) -> Exam:
        return build_exam(self.world, self.forget, self.part)

    @cached_property
    def papers(self) -> Mapping[bool, Paper]:
        """The questions at a run's end (True) and on the way."""
        forms = {True: tuple(self.exam.forms), False: ON_THE_WAY}
        return {at_end: Paper(self.exam, self.base, some) for at_end, some in forms.items()}

    @cached_property
    def triggers(self) -> Sequence[str]:
        """What is mixed into retain texts: statements of half of the forget domain's subjects."""
        mixed = set(self.parts.mixed)
        return [s for fact in self.parts.forget if fact.subject in mixed for s in fact.statements]

    @cached_property
    def texts(self) -> Mapping[str, Sequence[str]]:
        """The texts to forget and to keep: every sentence of their facts, in drawn order."""
        return {
            name: shuffled([sentence for fact in facts for sentence in fact.statements], name)
            for name, facts in (("forget", self.parts.forget), ("retain", self.parts.retain))
        }


def missing_steps(run: Run, bench: Bench) -> tuple[int, ...]:
    """The checkpoints of a run that still have to be asked.

    Raises UsageError if the run's file is from another setting.
    """
    paths = {step: answers_path(bench.folder, run, step) for step in run.checkpoints}
    for path in (path for path in paths.values() if path.exists()):
        known = json.loads(path.read_text(encoding="utf-8"))["setting"]
        if {**asdict(Setting()), **known} != asdict(run.setting):
            raise UsageError(f"output: {path} is from another setting; name a new folder")
    return tuple(step for step, path in paths.items() if not path.exists())


def execute(run: Run, bench: Bench, on_checkpoint: OnCheckpoint = lambda *_: None) -> None:
    """Unlearn as the run says and ask at every checkpoint that has no answers yet.

    After a stop the run trains again from its start, and asks only what is missing.
    """
    missing = missing_steps(run, bench)
    if not missing:
        return

    def ask(step: int, model: PreTrainedModel) -> None:
        loaded = LoadedModel(model, bench.base.tokenizer, run.name)
        at_end = step == run.setting.steps
        sheet = {
            "run": asdict(run),
            "setting": asdict(run.setting),
            "step": step,
            "answers": bench.papers[at_end].answers(loaded),
        }
        write_json(answers_path(bench.folder, run, step), sheet)
        on_checkpoint(run, step)

    unlearn(
        bench.base.model,
        bench.base.tokenizer,
        [run.topic(bench.texts["forget"], bench.texts["retain"], bench.triggers)],
        run.unlearning(),
        replace(run.training(), steps=max(missing)),
        checkpoints=missing,
        on_checkpoint=ask,
    )
