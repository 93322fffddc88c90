"""TOFU's questions to any models (`run_suite`), and the whole way from a recipe to its table."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from defuse.data.sampling import spread
from defuse.experiments.tofu.ask import NEW_TOKENS, OnAsked, ask
from defuse.experiments.tofu.data import FORGET, HUB, Item, check_part, load_items
from defuse.experiments.tofu.experiment import OnStage, Way, go, read_material
from defuse.experiments.tofu.metrics import check_rouge
from defuse.experiments.tofu.recipe import WholeWay
from defuse.experiments.tofu.store import Sheet, read_sheet, write_sheet
from defuse.experiments.tofu.summary import Figures, summarise
from defuse.experiments.tofu.table import as_data, make_rows, markdown, screen_table
from defuse.models.load import load_model, locate, resolve_device, resolve_dtype
from defuse.utils.config import dump
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, write_json, write_text
from defuse.utils.provenance import versions


@dataclass(frozen=True)
class Suite:
    """Which of TOFU's questions are asked, and how.

    `data`: a hub id or a folder with TOFU's files. `size`: questions of each set at most, evenly
    spread; None = all. `chat`: ask by the tokenizer's template instead of "Question: …\\nAnswer:".
    """

    data: str = HUB
    forget: str = "forget10"
    size: int | None = None
    new_tokens: int = NEW_TOKENS
    chat: bool = False


def run_suite(
    models: Sequence[str],
    out: Path,
    suite: Suite | None = None,
    *,
    gold: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    on_asked: OnAsked = lambda _, __: None,
) -> Iterator[tuple[str, Figures]]:
    """Ask every model TOFU's questions; a file of answers for each in the folder `out`.

    `gold`: the model taught the retain part alone, or its file of answers; with it comes the forget
    quality. A file holds every question's scores under `sets` and the figures under `summary`.
    Yields each model's name with its figures. Raises UsageError before anything is computed.
    """
    suite = suite or Suite()
    paths = _paths(models, out)
    check_part(suite.forget)
    check_rouge()
    resolve_device(device)
    resolve_dtype(dtype)
    for name in models if gold is None or _is_sheet(gold) else (*models, gold):
        locate(name)
    items = load_items(suite.data, suite.forget)
    sets = {name: spread(rows, suite.size) for name, rows in items.items()}

    def answers(name: str) -> Sheet:
        loaded = load_model(name, device=device, dtype=dtype)
        asked = ask(loaded, sets, new_tokens=suite.new_tokens, chat=suite.chat, on_asked=on_asked)
        return Sheet(asked)

    standard = None
    if gold is not None:
        standard = read_sheet(Path(gold)) if _is_sheet(gold) else answers(gold)
        _check_alike(gold, standard, sets)
    for name, path in paths.items():
        sheet = answers(name)
        figures = summarise([sheet.sets], [standard.sets] if standard else [])
        about = {"model": name, "suite": asdict(suite), "gold": gold, "dtype": dtype}
        write_sheet(path, sheet, about, asdict(figures))
        yield name, figures


def carry_out(recipe: WholeWay, on_stage: OnStage, console: Console) -> None:
    """The whole way, with its table on the screen and in the output folder."""
    check_writable(Path(recipe.output), "output")
    way = Way(recipe, read_material(recipe), on_stage)
    rows = make_rows(recipe, go(way))
    write_text(way.folder / "results.md", markdown(rows))
    data = {"recipe": dump(recipe), "rows": as_data(rows)}
    write_json(way.folder / "results.json", data | {"versions": versions()})
    console.print(screen_table(rows))
    console.print(f"written: {way.folder / 'results.md'}, results.json", highlight=False)


def _paths(models: Sequence[str], out: Path) -> dict[str, Path]:
    """Where each model's answers go. Raises UsageError where two would go to one place."""
    check_writable(out, "out")
    stems = {name: re.sub(r"[^\w.-]+", "-", name).strip("-.") for name in models}
    paths = {name: out / f"{stem}.json" for name, stem in stems.items()}
    if len(set(paths.values())) < len(models):
        raise UsageError("MODEL: two of the models have the same name; give each once")
    return paths


def _is_sheet(name: str) -> bool:
    return name.endswith(".json")


def _check_alike(gold: str, sheet: Sheet, sets: Mapping[str, Sequence[Item]]) -> None:
    """The test compares answers to the same questions."""
    asked = [item.question for item in sets[FORGET]]
    if [each.question for each in sheet.sets.get(FORGET, ())] != asked:
        raise UsageError(f"gold: {gold} answered other forget questions; ask it the same ones")
