"""`defuse evaluate --suite tofu`: TOFU's questions to any models, with a file of answers each."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from defuse.data.sampling import spread
from defuse.evaluate.tasks.tofu.answers import read_answers, write_answers
from defuse.evaluate.tasks.tofu.ask import NEW_TOKENS, Sets, ask
from defuse.evaluate.tasks.tofu.data import FORGET, HUB, Item, check_part, load_items
from defuse.evaluate.tasks.tofu.figures import Figures, summarise
from defuse.evaluate.tasks.tofu.metrics import check_rouge
from defuse.models.load import load_model, resolve_device, resolve_dtype
from defuse.models.locate import locate
from defuse.utils.config import Count, check_fields
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable
from defuse.utils.progress import SILENT, Progress


@dataclass(frozen=True)
class Suite:
    """Which of TOFU's questions are asked, and how.

    `data`: a hub id or a folder with TOFU's files. `size`: at most this many questions of each set,
    evenly spread; None is all. `chat`: use the tokenizer's chat template instead of
    "Question: …\\nAnswer:".
    """

    data: str = HUB
    forget: str = "forget10"
    size: Count | None = None
    new_tokens: Count = NEW_TOKENS
    chat: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Request:
    """Models to ask; their answers go into the folder `out`, a file each.

    `retrained`: the model taught the retain set alone, or its file of answers. The forget quality
    needs it.
    """

    models: Sequence[str]
    out: Path
    suite: Suite = Suite()
    retrained: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Plan:
    """A checked request: the questions, each model's file, and answers that are there already."""

    request: Request
    sets: Mapping[str, Sequence[Item]]
    paths: Mapping[str, Path]
    retrained: Sets | None


def check(request: Request) -> Plan:
    """Check all that can be checked before a model is loaded. Raises UsageError."""
    suite, retrained = request.suite, request.retrained
    paths = _paths(request.models, request.out)
    check_part(suite.forget)
    check_rouge()
    resolve_device(request.device)
    resolve_dtype(request.dtype)
    file = Path(retrained) if retrained and retrained.endswith(".json") else None
    for name in request.models if file or not retrained else (*request.models, retrained):
        locate(name)
    items = load_items(suite.data, suite.forget)
    sets = {name: spread(rows, suite.size) for name, rows in items.items()}
    if file is None:
        return Plan(request, sets, paths, None)
    answers = read_answers(file)
    if [each.question for each in answers.get(FORGET, ())] != [i.question for i in sets[FORGET]]:
        raise UsageError(
            f"retrained: {retrained} has answers to other forget questions; give answers to the "
            "same ones"
        )
    return Plan(request, sets, paths, answers)


def run(plan: Plan, progress: Progress = SILENT) -> Iterator[tuple[str, Figures]]:
    """Ask every model; yields its name and figures once its file is written.

    A file has each question's scores under `sets` and the figures under `summary`.
    """
    request, retrained = plan.request, plan.retrained
    if request.retrained is not None and retrained is None:
        retrained = _ask(plan, request.retrained, progress)
    for name, path in plan.paths.items():
        sets = _ask(plan, name, progress)
        figures = summarise([sets], [retrained] if retrained else [])
        about = {"model": name, "suite": asdict(request.suite), "dtype": request.dtype}
        about["gold"] = request.retrained  # the key of version 0.1.0
        write_answers(path, sets, about, asdict(figures))
        yield name, figures


def _ask(plan: Plan, model: str, progress: Progress) -> Sets:
    request, suite = plan.request, plan.request.suite
    loaded = load_model(model, device=request.device, dtype=request.dtype)
    return ask(loaded, plan.sets, new_tokens=suite.new_tokens, chat=suite.chat, progress=progress)


def _paths(models: Sequence[str], out: Path) -> dict[str, Path]:
    """Each model's file of answers. Raises UsageError if two models have the same file."""
    check_writable(out, "out")
    stems = {name: re.sub(r"[^\w.-]+", "-", name).strip("-.") for name in models}
    paths = {name: out / f"{stem}.json" for name, stem in stems.items()}
    if len(set(paths.values())) < len(models):
        raise UsageError("MODEL: two of the models have the same name; give each once")
    return paths
