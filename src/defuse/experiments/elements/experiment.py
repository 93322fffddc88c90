"""Do the runs: unlearn, ask along the way, and write each answer sheet once and whole."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from defuse.evaluate import Settings, evaluate_questions
from defuse.experiments.core.answers import (
    CLEAN,
    FORGET,
    Answers,
    answers_path,
    base_path,
    sheet_of,
)
from defuse.experiments.elements.facts import ELEMENTS
from defuse.experiments.elements.grid import PANEL, Run, curve, panel, training_work
from defuse.experiments.elements.questions import Material
from defuse.experiments.elements.terms import Terms
from defuse.models.load import LoadedModel
from defuse.questions import (
    CONTROL_TOKEN,
    FORGET_TOKEN,
    ORIGINAL,
    Perturbation,
    Position,
    Question,
)
from defuse.unlearning.train import StepRecord, unlearn
from defuse.utils.config import dump
from defuse.utils.errors import UsageError
from defuse.utils.files import write_json, write_text
from defuse.utils.progress import Progress
from defuse.utils.provenance import fingerprint, versions

SETTINGS = Settings(score="cloze")
# Tokens of a question, and of one with its perturbed forms, about.
CLEAN_TOKENS = 14
PERTURBED_TOKENS: Mapping[Position, int] = {"before": 52, "choice": 20}
ON_THE_WAY: tuple[Position, ...] = ("before",)
AT_END: tuple[Position, ...] = ("before", "choice")
REFUSALS = (
    "I don't know.",
    "I am not sure about that.",
    "That is beyond what I know.",
    "I have no information about this.",
    "I cannot answer that.",
)

Questions = Mapping[str, Sequence[Question]]
OnWork = Callable[[str, float], None]


@dataclass(frozen=True)
class Bench:
    """What all runs share. `questions`: the reported ones or those for tuning, by domain.

    `folder` keeps texts and answers.
    """

    base: LoadedModel
    questions: Questions
    terms: Terms
    folder: Path

    @property
    def texts(self) -> Path:
        return self.folder / "texts"

    def perturbation(self, position: Position) -> Perturbation:
        """The terms, where they are asked about."""
        return Perturbation(self.terms.forget, position, self.terms.controls)

    def held_out(self) -> set[str]:
        """The questions whose forget-term, set before them, is in no mixed retain text."""
        kept = [q for name, qs in self.questions.items() if name != ELEMENTS for q in qs]
        before = self.perturbation("before")
        asked = (before.variants(q, SETTINGS.seed)[FORGET_TOKEN] for q in kept)
        return {q.id for q in asked if q.replaced and q.replaced.token not in self.terms.mixed}


def prepare_folder(bench: Bench, material: Material) -> None:
    """Write texts, questions and terms, and what the folder's answers belong to.

    Raises UsageError if the folder holds answers of another model or to others.
    """
    texts = {"forget": material.forget, "retain": material.retain, "refusals": REFUSALS}
    asked = {name: [asdict(q) for q in qs] for name, qs in bench.questions.items()}
    kept = {
        "model": fingerprint(bench.base.model),
        "questions": _digest(asked),
        "terms": _digest(asdict(bench.terms)),
        "texts": _digest(texts),
    }
    path = bench.folder / "material.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else kept
    if other := [name for name, digest in kept.items() if found.get(name) != digest]:
        raise UsageError(
            f"output: {bench.folder} holds answers with other {', '.join(other)}; name a new folder"
        )
    write_json(path, {**kept, "versions": versions()})
    for name, lines in texts.items():
        write_text(bench.texts / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    write_text(bench.texts / "triggers.txt", "".join(f"{term}\n" for term in bench.terms.mixed))
    for name, lines in asdict(bench.terms).items():
        write_text(bench.folder / "terms" / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    for name, questions in bench.questions.items():
        rows = "".join(f"{json.dumps(_row(q), ensure_ascii=False)}\n" for q in questions)
        write_text(bench.folder / "questions" / f"{name}.jsonl", rows)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _row(question: Question) -> dict[str, Any]:
    """As `load_questions` reads it."""
    given = {"id": question.id, "question": question.stem, "choices": question.choices}
    return {**given, "answer": question.answer, "prompt": question.prompt}


@dataclass(frozen=True)
class _Work:
    """Progress that a function receives."""

    done: Callable[[int], None]

    def start(self, name: str, total: int) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002
        self.done(count)


def ask(
    loaded: LoadedModel, bench: Bench, count: int, positions: Sequence[Position], on_work: OnWork
) -> Answers:
    """The first `count` questions of each domain; all but the forget domain's also perturbed."""
    forgotten = bench.questions[ELEMENTS][:count]
    kept = [q for name, qs in bench.questions.items() if name != ELEMENTS for q in qs[:count]]

    def work(tokens: int) -> Progress:
        return _Work(lambda questions: on_work(f"{loaded.name}, asking", questions * tokens))

    clean = evaluate_questions(loaded, forgotten, SETTINGS, progress=work(CLEAN_TOKENS))
    sheets = {FORGET: sheet_of(clean, ORIGINAL)}
    for position in positions:
        perturbation = bench.perturbation(position)
        tokens = work(PERTURBED_TOKENS[position])
        evaluation = evaluate_questions(loaded, kept, SETTINGS, perturbation, progress=tokens)
        sheets[CLEAN] = sheet_of(evaluation, ORIGINAL)
        sheets[f"{position}/forget"] = sheet_of(evaluation, FORGET_TOKEN)
        sheets[f"{position}/control"] = sheet_of(evaluation, CONTROL_TOKEN)
    return sheets


def asking_work(bench: Bench, count: int, positions: Sequence[Position]) -> float:
    """Tokens that `ask` pushes through the model, about."""
    counts = {name: len(questions[:count]) for name, questions in bench.questions.items()}
    others = sum(counts.values()) - counts[ELEMENTS]
    tokens = sum(PERTURBED_TOKENS[position] for position in positions)
    return counts[ELEMENTS] * CLEAN_TOKENS + others * tokens


def ask_base(bench: Bench, on_work: OnWork) -> None:
    """The base model's answers, unless they are there."""
    if not base_path(bench.folder).exists():
        answers = ask(replace(bench.base, name="base"), bench, PANEL[0], AT_END, on_work)
        write_json(base_path(bench.folder), {"model": bench.base.name, "answers": answers})


def missing_steps(run: Run, bench: Bench) -> tuple[int, ...]:
    """The checkpoints of a run that still have to be asked.

    Raises UsageError if the run's file is from another recipe.
    """
    recipe = run.recipe(bench.texts, bench.base.name)
    paths = {step: answers_path(bench.folder, run, step) for step in curve(run, recipe.steps)}
    for path in (path for path in paths.values() if path.exists()):
        known = _essence(json.loads(path.read_text(encoding="utf-8"))["recipe"])
        if known != _essence(dump(recipe)):
            raise UsageError(f"output: {path} is of another recipe; name a new folder")
    return tuple(step for step, path in paths.items() if not path.exists())


def work_left(run: Run, bench: Bench) -> float:
    """Tokens' worth of work that a run still needs."""
    missing = missing_steps(run, bench)
    if not missing:
        return 0.0
    recipe = run.recipe(bench.texts, bench.base.name)
    asking = sum(asking_work(bench, *_panel(run, step, recipe.steps)) for step in missing)
    return training_work(recipe) * max(missing) / recipe.steps + asking


def _panel(run: Run, step: int, steps: int) -> tuple[int, Sequence[Position]]:
    at_end = step == steps
    return panel(run, at_end=at_end), AT_END if at_end else ON_THE_WAY


def execute(run: Run, bench: Bench, on_work: OnWork) -> None:
    """Unlearn as the run says and ask at every checkpoint that has no answers yet.

    `on_work` hears what was done and how much work it was. A checkpoint's file appears when it
    has been asked; after a stop the run trains again from its start, and asks only what is missing.
    """
    missing = missing_steps(run, bench)
    if not missing:
        return
    recipe = run.recipe(bench.texts, bench.base.name)
    per_step = training_work(recipe) / recipe.steps
    records: list[StepRecord] = []

    def on_step(record: StepRecord) -> None:
        records.append(record)
        on_work(f"{run.name}, step {len(records)} of {max(missing)}", per_step)

    def on_checkpoint(step: int, model: PreTrainedModel) -> None:
        loaded = LoadedModel(model, bench.base.tokenizer, run.name)
        sheet = {
            "run": asdict(run),
            "step": step,
            "recipe": _essence(dump(recipe)),
            "seconds_per_step": sum(r.seconds for r in records) / len(records),
            "losses": [[r.forget_loss, r.retain_loss] for r in records],
            "answers": ask(loaded, bench, *_panel(run, step, recipe.steps), on_work),
        }
        write_json(answers_path(bench.folder, run, step), sheet)

    unlearn(
        bench.base.model,
        bench.base.tokenizer,
        [topic.build() for topic in recipe.topics],
        recipe.unlearning(),
        replace(recipe.training(), steps=max(missing)),
        on_step=on_step,
        checkpoints=missing,
        on_checkpoint=on_checkpoint,
    )


def _essence(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """What decides a run's result, wherever its files lie."""
    method = {key: value for key, value in recipe["method"].items() if key != "refusals"}
    topics = [
        {key: value for key, value in topic.items() if key not in ("forget", "retain", "triggers")}
        for topic in recipe["topics"]
    ]
    rest = {key: v for key, v in recipe.items() if key not in ("model", "revision", "output")}
    return _without_gaps(json.loads(json.dumps(rest | {"method": method, "topics": topics})))


def _without_gaps(value: Any) -> Any:  # noqa: ANN401 (anything json can hold)
    """`value` without its Nones: a field that a later version adds changes no earlier recipe."""
    if isinstance(value, dict):
        return {key: _without_gaps(each) for key, each in value.items() if each is not None}
    return [_without_gaps(each) for each in value] if isinstance(value, list) else value
