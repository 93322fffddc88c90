"""The models of the experiment, stage by stage: taught or unlearned, asked, and kept."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from defuse.data.sampling import spread
from defuse.data.text import QuestionAnswer
from defuse.evaluate.tasks.tofu.answers import sets_from_json
from defuse.evaluate.tasks.tofu.ask import Sets, ask
from defuse.evaluate.tasks.tofu.data import (
    FORGET,
    RETAIN,
    RETAIN_OF,
    Item,
    choose_authors,
    items_about,
    load_items,
    load_pairs,
)
from defuse.evaluate.tasks.tofu.names import (
    NamedQuestion,
    NameScore,
    ask_named,
    author_names,
    put_names_before,
)
from defuse.experiments.core.run import recorded
from defuse.experiments.tofu.recipe import OLD_NAMES, PRETRAINED, REFERENCE, RETRAINED, TofuRecipe
from defuse.finetune import run as finetuning
from defuse.models.load import load_model
from defuse.store import ResultStore
from defuse.unlearning import run as unlearning
from defuse.utils.errors import UsageError, require
from defuse.utils.files import write_text
from defuse.utils.progress import SILENT, Labelled, Progress

NAME_SEED = 0


@dataclass(frozen=True)
class TofuData:
    """Pairs to unlearn and to retain, the questions, and the retain questions after names."""

    forget: Sequence[QuestionAnswer]
    retain: Sequence[QuestionAnswer]
    sets: Mapping[str, Sequence[Item]]
    named: Sequence[NamedQuestion]


@dataclass(frozen=True)
class Stage:
    """One model of one seed; the pretrained model is the same for all seeds and has none."""

    name: str
    seed: int | None = None

    def __str__(self) -> str:
        return self.name if self.seed is None else f"seed {self.seed}, {self.name}"

    @property
    def folder(self) -> str:
        return "" if self.seed is None else f"seed{self.seed}"

    @property
    def record(self) -> str:
        """The name of its record."""
        return f"{self.folder}-{self.name}".lstrip("-")


@dataclass(frozen=True)
class Answers:
    """One model's answers to each set's questions, and its scores after names."""

    sets: Sets
    names: Sequence[NameScore]


def read_data(recipe: TofuRecipe) -> TofuData:
    """Read the rows of TOFU that the recipe asks for."""
    parts = {FORGET: recipe.forget, RETAIN: RETAIN_OF[recipe.forget]}
    counts = {FORGET: recipe.forget_authors, RETAIN: recipe.retain_authors}
    pairs = {
        name: choose_authors(load_pairs(recipe.data, part), counts[name], recipe.skip_authors)
        for name, part in parts.items()
    }
    items = load_items(recipe.data, recipe.forget)
    items |= {name: items_about(items[name], known) for name, known in pairs.items()}
    for name in pairs:
        remedy = "has no question about the taught authors; lower skip_authors"
        require(bool(items[name]), f"data: {recipe.data}", name, remedy)
    sets = {name: spread(rows, recipe.asked) for name, rows in items.items()}
    forgotten, retained = (author_names(known) for known in pairs.values())
    named = put_names_before(sets[RETAIN], forgotten, retained, NAME_SEED)
    return TofuData(pairs[FORGET], pairs[RETAIN], sets, named)


def all_stages(recipe: TofuRecipe) -> list[Stage]:
    """The pretrained model, and each seed's models in the order in which they are made."""
    names = (REFERENCE, RETRAINED, *recipe.defences)
    return [Stage(PRETRAINED), *(Stage(name, seed) for seed in recipe.seeds for name in names)]


def load_answers(recipe: TofuRecipe, stage: Stage) -> Answers | None:
    """A model's answers if they are there. Raises UsageError if they are of another recipe."""
    store = _answers_store(recipe, stage)
    names = (stage.name, OLD_NAMES.get(stage.name, stage.name))
    found = next((store.get(name) for name in names if store.path(name).is_file()), None)
    return None if found is None else _answers(found)


def _answers_store(recipe: TofuRecipe, stage: Stage) -> ResultStore:
    folder = Path(recipe.output, "answers", stage.folder)
    return ResultStore(folder, recipe.identity(stage.name, stage.seed), read_old=_read_old)


def _read_old(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """A file of version 0.1.0."""
    result = {"sets": document["sets"], "names": document["names"]}
    _answers(result)
    return document["about"], result


def _answers(result: Mapping[str, Any]) -> Answers:
    return Answers(sets_from_json(result["sets"]), [NameScore(**each) for each in result["names"]])


def records(recipe: TofuRecipe) -> ResultStore:
    """The records of stages: versions and seconds, or the error."""
    return ResultStore(Path(recipe.output, "runs"))


def failures(recipe: TofuRecipe) -> dict[Stage, str]:
    """The error of each stage that failed."""
    known = {stage: records(recipe).get(stage.record) for stage in all_stages(recipe)}
    return {stage: each["error"] for stage, each in known.items() if each and "error" in each}


def prepare(recipe: TofuRecipe, data: TofuData, stages: Sequence[Stage]) -> None:
    """Write the texts to train on, and check that every stage can run. Raises UsageError."""
    for name, pairs in ((FORGET, data.forget), (RETAIN, data.retain)):
        rows = ({"question": pair.question, "answer": pair.answer} for pair in pairs)
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        write_text(_texts(recipe) / f"{name}.jsonl", lines)
    for stage in stages:
        if stage.name in (REFERENCE, RETRAINED):
            finetuning.finished(_teaching(recipe, stage))
        if stage.name in recipe.defences:
            unlearning.check(_unlearning(recipe, stage, recipe.model))


def execute(recipe: TofuRecipe, data: TofuData, stage: Stage, progress: Progress = SILENT) -> None:
    """Make one model, ask it, and keep its answers and its record, which has any error."""
    labelled = Labelled(progress, str(stage))
    record = recorded(stage.record, lambda: _make_and_ask(recipe, data, stage, labelled))
    records(recipe).put(stage.record, record)


def _make_and_ask(
    recipe: TofuRecipe, data: TofuData, stage: Stage, progress: Progress
) -> dict[str, Any]:
    model = recipe.model
    if stage.name in recipe.defences:
        model = _unlearn(recipe, stage, progress)
    elif stage.name != PRETRAINED:
        model = _teach(recipe, stage, progress)
    loaded = load_model(model, device=recipe.device, dtype=recipe.dtype)
    sets = ask(loaded, data.sets, new_tokens=recipe.new_tokens, progress=progress)
    names = ask_named(loaded, data.named, data.sets[RETAIN])
    _answers_store(recipe, stage).put(stage.name, asdict(Answers(sets, names)))
    if stage.name in recipe.defences and not recipe.keep_models:
        shutil.rmtree(model)
    return {"model": stage.name, "seed": stage.seed}


def _texts(recipe: TofuRecipe) -> Path:
    return Path(recipe.output, "texts")


def _model_folder(recipe: TofuRecipe, stage: Stage) -> Path:
    """A model's folder; one that version 0.1.0 made keeps its name."""
    folder = Path(recipe.output, "models", stage.folder)
    new, old = folder / stage.name, folder / OLD_NAMES.get(stage.name, stage.name)
    return old if old.is_dir() and not new.is_dir() else new


def _teaching(recipe: TofuRecipe, stage: Stage) -> finetuning.Plan:
    parts = (FORGET, RETAIN) if stage.name == REFERENCE else (RETAIN,)
    request = finetuning.Request(
        recipe.model,
        tuple(str(_texts(recipe) / f"{part}.jsonl") for part in parts),
        _model_folder(recipe, stage),
        recipe.finetuning(stage.seed or 0),
        device=recipe.device,
        dtype=recipe.dtype,
    )
    return finetuning.check(request)


def _teach(recipe: TofuRecipe, stage: Stage, progress: Progress) -> str:
    plan = _teaching(recipe, stage)
    if not finetuning.finished(plan):
        finetuning.run(plan, progress)
    return str(plan.request.out)


def _unlearning(recipe: TofuRecipe, stage: Stage, model: str) -> unlearning.Recipe:
    output = _model_folder(recipe, stage)
    return recipe.unlearning(stage.name, stage.seed or 0, model, _texts(recipe), output)


def _unlearn(recipe: TofuRecipe, stage: Stage, progress: Progress) -> str:
    reference = Stage(REFERENCE, stage.seed)
    if reference in failures(recipe) and not finetuning.finished(_teaching(recipe, reference)):
        raise UsageError(f"model: the reference model of seed {stage.seed} failed; see its record")
    model = _teach(recipe, reference, progress)
    plan = unlearning.check(_unlearning(recipe, stage, model))
    if not unlearning.finished(plan):
        unlearning.run(plan, progress)
    return plan.recipe.output
