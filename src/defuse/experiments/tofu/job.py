"""`defuse tofu`: models are taught or unlearned, asked, and reported, one after the other."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from defuse.evaluate.tasks.tofu.data import FORGET, RETAIN
from defuse.evaluate.tasks.tofu.metrics import check_rouge
from defuse.evaluate.tasks.tofu.part import TofuAnswers, TofuPart, ask_part, load_tofu_part
from defuse.experiments.core.job import Request
from defuse.experiments.core.records import failures, print_failures, records
from defuse.experiments.core.run import recorded
from defuse.experiments.tofu.recipe import OLD_NAMES, PRETRAINED, REFERENCE, RETRAINED, TofuRecipe
from defuse.experiments.tofu.table import Row, make_rows, markdown, on_screen, unreadable_sentences
from defuse.finetune import run as finetuning
from defuse.models.load import load_model
from defuse.report.format import screen_table
from defuse.store import SCHEMA_VERSION, ResultStore
from defuse.unlearning import run as unlearning
from defuse.utils.config import dump
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held, write_json, write_text
from defuse.utils.progress import SILENT, Labelled, Progress
from defuse.utils.provenance import versions


@dataclass(frozen=True)
class Stage:
    """One model of one seed; the pretrained model is the same for all seeds and has none."""

    recipe: TofuRecipe = field(compare=False, repr=False)
    name: str
    seed: int | None = None

    def __str__(self) -> str:
        return self.name if self.seed is None else f"seed {self.seed}, {self.name}"

    @property
    def path(self) -> str:
        """The place of its answers, and of its model, in the folder of all."""
        return self.name if self.seed is None else f"seed{self.seed}/{self.name}"

    @property
    def record(self) -> str:
        """The name of its record."""
        return self.path.replace("/", "-")

    def place(self, folder: str, suffix: str = "") -> Path:
        """Where it is in a folder of the output; what version 0.1.0 made there keeps its name."""
        old = replace(self, name=OLD_NAMES.get(self.name, self.name))
        paths = [Path(self.recipe.output, folder, f"{each.path}{suffix}") for each in (self, old)]
        return paths[1] if paths[1].exists() and not paths[0].exists() else paths[0]

    @property
    def error(self) -> str | None:
        """Why it failed, if it did."""
        return failures(Path(self.recipe.output), [self.record]).get(self.record)

    @property
    def answers(self) -> TofuAnswers | None:
        """Its answers if they are there. Raises UsageError if they are of another recipe."""
        file = self.place("answers", ".json")
        found = _store(self, file.parent).get(file.stem)
        return None if found is None else TofuAnswers.from_json(found)


def all_stages(recipe: TofuRecipe) -> list[Stage]:
    """The pretrained model, and each seed's models in the order in which they are made."""
    names = (REFERENCE, RETRAINED, *recipe.defences)
    seeded = [Stage(recipe, name, seed) for seed in recipe.seeds for name in names]
    return [Stage(recipe, PRETRAINED), *seeded]


def run_tofu(
    recipe: TofuRecipe, request: Request, console: Console, progress: Progress = SILENT
) -> int:
    """Carry out what is missing and report; returns how many stages have failed.

    Raises UsageError, before anything is taught, for what cannot be run or written, and for answers
    of another recipe.
    """
    check_writable(Path(recipe.output), "output")
    states = {stage: _state(stage, request) for stage in all_stages(recipe)}
    todo = [stage for stage, state in states.items() if state == "to do"]
    if request.plan:
        for place, (stage, state) in enumerate(states.items(), start=1):
            console.print(f"{place:3}. {stage} ({state})", highlight=False, soft_wrap=True)
    console.print(f"{len(todo)} of {len(states)} models to do.", highlight=False)
    if request.plan:
        _print_missing(recipe, console)
        return 0
    if request.report and "finished" not in states.values():
        raise UsageError(f"report: nothing is finished in {recipe.output} yet; run it first")
    if todo and not request.report:
        _carry_out(recipe, todo, progress)
    answers = {stage: stage.answers for stage in states}
    finished = {(s.name, s.seed): each for s, each in answers.items() if each is not None}
    unfinished = (stage for stage, each in answers.items() if each is None)
    failed = {str(stage): stage.error for stage in unfinished if stage.error}
    print_failures(failed, console)
    if finished:
        _report(recipe, make_rows(recipe, finished), console)
    return len(failed)


def _state(stage: Stage, request: Request) -> str:
    if stage.answers is not None:
        return "finished"
    return "failed" if stage.error and not request.retry_failed else "to do"


def _print_missing(recipe: TofuRecipe, console: Console) -> None:
    """Say what the data or the packages lack; a plan needs neither."""
    try:
        read_data(recipe)
    except UsageError as error:
        console.print(f"Not ready: {error}", highlight=False, markup=False, soft_wrap=True)


def _carry_out(recipe: TofuRecipe, todo: Sequence[Stage], progress: Progress) -> None:
    part = read_data(recipe)
    with held(Path(recipe.output, "lock"), "output", recipe.output):
        # Another writer may have finished some since.
        todo = [stage for stage in todo if stage.answers is None]
        prepare(recipe, part, todo)
        for stage in todo:
            execute(stage, part, progress)


def _report(recipe: TofuRecipe, rows: Sequence[Row], console: Console) -> None:
    """Write results.md and results.json; print the table."""
    folder = Path(recipe.output)
    write_text(folder / "results.md", markdown(rows))
    found = {"recipe": dump(recipe), "rows": [asdict(row) for row in rows], "versions": versions()}
    write_json(folder / "results.json", {"schema_version": SCHEMA_VERSION, **found})
    console.print(screen_table(on_screen(rows)))
    for sentence in unreadable_sentences(rows):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Written in {folder}: results.md, results.json", highlight=False)


def read_data(recipe: TofuRecipe) -> TofuPart:
    """Read the rows of TOFU that the recipe asks for. Raises UsageError for what is missing."""
    check_rouge()
    authors = {FORGET: recipe.forget_authors, RETAIN: recipe.retain_authors}
    return load_tofu_part(recipe.data, recipe.forget, authors, recipe.skip_authors, recipe.asked)


def prepare(recipe: TofuRecipe, part: TofuPart, stages: Sequence[Stage]) -> None:
    """Write the texts to train on, and check that every stage can run. Raises UsageError."""
    for name, pairs in ((FORGET, part.forget), (RETAIN, part.retain)):
        rows = ({"question": pair.question, "answer": pair.answer} for pair in pairs)
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        write_text(_texts(recipe) / f"{name}.jsonl", lines)
    for stage in stages:
        if stage.name in (REFERENCE, RETRAINED):
            finetuning.finished(_teaching(stage))
        if stage.name in recipe.defences:
            unlearning.check(_unlearning(stage, recipe.model))


def execute(stage: Stage, part: TofuPart, progress: Progress = SILENT) -> None:
    """Make one model, ask it, and keep its answers and its record, which has any error."""
    labelled = Labelled(progress, str(stage))
    record = recorded(stage.record, lambda: _make_and_ask(stage, part, labelled))
    records(Path(stage.recipe.output)).put(stage.record, record)


def _make_and_ask(stage: Stage, part: TofuPart, progress: Progress) -> dict[str, Any]:
    recipe, model = stage.recipe, _make(stage, progress)
    loaded = load_model(model, device=recipe.device, dtype=recipe.dtype)
    answers = ask_part(loaded, part, recipe.new_tokens, progress)
    _store(stage, Path(recipe.output, "answers")).put(stage.path, asdict(answers))
    if stage.name in recipe.defences and not recipe.keep_models:
        shutil.rmtree(model)
    return {"model": stage.name, "seed": stage.seed}


def _make(stage: Stage, progress: Progress) -> str:
    """The stage's model, by name or folder; it is made unless it is there."""
    recipe = stage.recipe
    if stage.name == PRETRAINED:
        return recipe.model
    if stage.name not in recipe.defences:
        teaching = _teaching(stage)
        if not finetuning.finished(teaching):
            finetuning.run(teaching, progress)
        return str(teaching.request.out)
    reference = replace(stage, name=REFERENCE)
    if reference.error and not finetuning.finished(_teaching(reference)):
        raise UsageError(f"model: the reference model of seed {stage.seed} failed; see its record")
    plan = unlearning.check(_unlearning(stage, _make(reference, progress)))
    if not unlearning.finished(plan):
        unlearning.run(plan, progress)
    return plan.recipe.output


def _teaching(stage: Stage) -> finetuning.Plan:
    recipe = stage.recipe
    parts = (FORGET, RETAIN) if stage.name == REFERENCE else (RETAIN,)
    request = finetuning.Request(
        recipe.model,
        tuple(str(_texts(recipe) / f"{part}.jsonl") for part in parts),
        stage.place("models"),
        replace(recipe.finetune, seed=stage.seed or 0),
        device=recipe.device,
        dtype=recipe.dtype,
    )
    return finetuning.check(request)


def _unlearning(stage: Stage, model: str) -> unlearning.Recipe:
    texts, output = _texts(stage.recipe), stage.place("models")
    return stage.recipe.unlearning(stage.name, stage.seed or 0, model, texts, output)


def _texts(recipe: TofuRecipe) -> Path:
    return Path(recipe.output, "texts")


def _store(stage: Stage, folder: Path) -> ResultStore:
    identity = stage.recipe.identity(stage.name, stage.seed)
    return ResultStore(folder, identity, read_old=_read_old)


def _read_old(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """A file of version 0.1.0."""
    result = {"sets": document["sets"], "names": document["names"]}
    TofuAnswers.from_json(result)
    return document["about"], result
