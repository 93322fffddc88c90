"""The whole way, stage by stage: teach, unlearn, ask; what is finished is never done again."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from defuse.data.sampling import spread
from defuse.data.text import QuestionAnswer
from defuse.experiments.tofu.ask import ask, ask_behind_names
from defuse.experiments.tofu.data import (
    FORGET,
    RETAIN,
    RETAIN_OF,
    Item,
    about,
    load_items,
    load_pairs,
    some_authors,
)
from defuse.experiments.tofu.metrics import check_rouge
from defuse.experiments.tofu.names import Named, author_names, name_before
from defuse.experiments.tofu.recipe import BASE, FULL, GOLD, WholeWay
from defuse.experiments.tofu.store import Sheet, known_sheet, write_sheet
from defuse.finetune import run as finetuning
from defuse.models.load import load_model
from defuse.unlearning import run as unlearning
from defuse.utils.errors import require
from defuse.utils.files import held, write_text

NAME_SEED = 0

# Told a stage's name and size, gives what is told of its progress, in total.
OnStage = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class Material:
    """What is taught, unlearnt and asked; `behind`: the kept questions behind authors' names."""

    forget: Sequence[QuestionAnswer]
    retain: Sequence[QuestionAnswer]
    sets: Mapping[str, Sequence[Item]]
    behind: Sequence[Named]


def read_material(recipe: WholeWay) -> Material:
    """TOFU's rows, as many as the recipe says."""
    parts = {FORGET: recipe.forget, RETAIN: RETAIN_OF[recipe.forget]}
    counts = {FORGET: recipe.forget_authors, RETAIN: recipe.retain_authors}
    pairs = {
        name: some_authors(load_pairs(recipe.data, part), counts[name], recipe.skip_authors)
        for name, part in parts.items()
    }
    items = load_items(recipe.data, recipe.forget)
    items |= {name: about(items[name], known) for name, known in pairs.items()}
    for name in pairs:
        remedy = "no question about the taught authors; lower skip_authors"
        require(bool(items[name]), f"data: {recipe.data}", name, f"has {remedy}")
    sets = {name: spread(rows, recipe.asked) for name, rows in items.items()}
    forgotten, kept = (author_names(known) for known in pairs.values())
    behind = name_before(sets[RETAIN], forgotten, kept, NAME_SEED)
    return Material(pairs[FORGET], pairs[RETAIN], sets, behind)


@dataclass(frozen=True)
class Way:
    """A recipe on its way: its material, and the folders of models and answers."""

    recipe: WholeWay
    material: Material
    on_stage: OnStage

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output)

    @property
    def texts(self) -> Path:
        return self.folder / "texts"

    def model(self, name: str, seed: int) -> Path:
        """The folder of one model."""
        return self.folder / "models" / f"seed{seed}" / name

    def answers(self, name: str, seed: int) -> Path:
        """The file of one model's answers; the base model's are the same for all seeds."""
        place = [] if name == BASE else [f"seed{seed}"]
        return Path(self.folder, "answers", *place, f"{name}.json")


Sheets = dict[tuple[str, int], Sheet]


def go(way: Way) -> Sheets:
    """All stages of all seeds, as far as they are not done; returns every model's answers.

    Raises UsageError, before anything is taught, for what cannot be run and for a folder with
    answers or models of another recipe.
    """
    check_rouge()
    names = (BASE, FULL, GOLD, *way.recipe.arms)
    wanted = [(name, seed) for seed in way.recipe.seeds for name in names]
    with held(way.folder / "lock", "output", way.recipe.output):
        missing = [each for each in wanted if _known(way, *each) is None]
        _write_texts(way)
        for each in missing:
            _check(way, *each)
        return {each: _known(way, *each) or _sheet(way, *each) for each in wanted}


def _known(way: Way, name: str, seed: int) -> Sheet | None:
    """The answers that are there already."""
    return known_sheet(way.answers(name, seed), way.recipe.essence(name, seed))


def _check(way: Way, name: str, seed: int) -> None:
    """Raise UsageError for a model that cannot be taught or unlearnt."""
    if name in (FULL, GOLD):
        finetuning.finished(_teaching(way, name, seed))
    if name in way.recipe.arms:
        output = way.model(name, seed)
        recipe = way.recipe.unlearning(name, seed, way.recipe.model, way.texts, output)
        unlearning.check(recipe)


def _sheet(way: Way, name: str, seed: int) -> Sheet:
    model = _make(way, name, seed)
    sheet = _ask(way, model, f"seed {seed}: asking {name}")
    write_sheet(way.answers(name, seed), sheet, way.recipe.essence(name, seed))
    if name in way.recipe.arms and not way.recipe.keep_models:
        shutil.rmtree(model)
    return sheet


def _make(way: Way, name: str, seed: int) -> str:
    """The named model, made if it is not there."""
    if name == BASE:
        return way.recipe.model
    if name in (FULL, GOLD):
        return _teach(way, name, seed)
    return _unlearn(way, name, seed)


def _teaching(way: Way, name: str, seed: int) -> finetuning.Plan:
    parts = (FORGET, RETAIN) if name == FULL else (RETAIN,)
    request = finetuning.Request(
        way.recipe.model,
        tuple(str(way.texts / f"{part}.jsonl") for part in parts),
        way.model(name, seed),
        way.recipe.finetuning(seed),
        device=way.recipe.device,
        dtype=way.recipe.dtype,
    )
    return finetuning.check(request)


def _teach(way: Way, name: str, seed: int) -> str:
    plan = _teaching(way, name, seed)
    if not finetuning.finished(plan):
        told = way.on_stage(f"seed {seed}: teaching {name}", plan.steps)
        finetuning.run(plan, on_step=lambda step, _: told(step))
    return str(plan.request.out)


def _unlearn(way: Way, arm: str, seed: int) -> str:
    full, output = _teach(way, FULL, seed), way.model(arm, seed)
    recipe = way.recipe.unlearning(arm, seed, full, way.texts, output)
    if not unlearning.finished(recipe):
        told = way.on_stage(f"seed {seed}: unlearning {arm}", recipe.steps)
        plan = unlearning.check(recipe)
        unlearning.run(plan, on_step=lambda record: told(record.step + 1))
    return str(output)


def _ask(way: Way, model: str, what: str) -> Sheet:
    loaded = load_model(model, device=way.recipe.device, dtype=way.recipe.dtype)
    sets, done = way.material.sets, 0
    told = way.on_stage(what, 2 * sum(map(len, sets.values())))

    def on_asked(_: str, count: int) -> None:
        nonlocal done
        done += count
        told(done)

    answered = ask(loaded, sets, new_tokens=way.recipe.new_tokens, on_asked=on_asked)
    return Sheet(answered, ask_behind_names(loaded, way.material.behind, sets[RETAIN]))


def _write_texts(way: Way) -> None:
    for name, pairs in ((FORGET, way.material.forget), (RETAIN, way.material.retain)):
        rows = ({"question": pair.question, "answer": pair.answer} for pair in pairs)
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        write_text(way.texts / f"{name}.jsonl", lines)
