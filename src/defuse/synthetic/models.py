"""The lab's tiny models, shipped with the package or taught anew.

The reference model knows the whole world; the retrained model never saw the forget domain's facts.
"""

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from defuse.models.load import LoadedModel, load_model
from defuse.models.save import save_model
from defuse.synthetic.language import build_tokenizer
from defuse.synthetic.teaching import STEPS, teach
from defuse.synthetic.world import SEED, SIZE, World, all_domains
from defuse.utils.files import write_json
from defuse.utils.progress import PlainProgress
from defuse.utils.provenance import versions
from defuse.utils.workers import local_workers

SHIPPED = Path(__file__).parent / "checkpoints"
SHIPPED_FORGET = "pathogens"
SHIPPED_LABEL = f"{SHIPPED_FORGET}-seed{SEED}"
NAMES = {"base": "reference", "gold": "retrained"}  # by folder


def world_label(world: World, forget: str) -> str:
    """A name for folders: the forget domain, the seed, and the size and domains if not usual."""
    size = "" if world.size == SIZE else f"-size{world.size}"
    names = [domain.name for domain in world.domains]
    chosen = "" if names == list(all_domains()) else "".join(f"-{name}" for name in names)
    return f"{forget}-seed{world.seed}{size}{chosen}"


def models_folder(output: Path, label: str) -> Path:
    """Where the models of a world with this label are: shipped, or below `output`."""
    is_shipped = label == SHIPPED_LABEL and not missing(SHIPPED)
    return SHIPPED if is_shipped else output / "models" / label


class Pair(NamedTuple):
    """The reference model, and the retrained one."""

    reference: LoadedModel
    retrained: LoadedModel


def load_pair(folder: Path = SHIPPED) -> Pair:
    """The two models in `folder`, in float32 on the CPU."""
    return Pair(*(load_model(str(folder / n), device="cpu", dtype="float32") for n in NAMES))


def missing(folder: Path) -> list[str]:
    """The folders of the models that still have to be taught."""
    return [name for name in NAMES if not (folder / name / "config.json").is_file()]


def teach_pair(world: World, forget: str, folder: Path, steps: int = STEPS) -> None:
    """Teach what is missing in `folder`, in processes; each is written when it is finished."""
    names = missing(folder)
    with local_workers(len(names) or 1) as submit:
        taught = [submit(_teach_one, world, forget, folder, steps, name) for name in names]
        for each in taught:
            each.result()
    about = {
        "world_seed": world.seed,
        "size": world.size,
        "domains": [domain.name for domain in world.domains],
        "forget": forget,
        "steps": steps,
        "versions": versions(),
    }
    write_json(folder / "training.json", about)


def _teach_one(world: World, forget: str, folder: Path, steps: int, name: str) -> None:
    tokenizer = build_tokenizer(world)
    without = forget if NAMES[name] == "retrained" else None
    with closing(PlainProgress()) as progress:  # a line at a time: two processes share the screen
        progress.start(f"training the {NAMES[name]} model", steps)
        model = teach(
            world, tokenizer, without=without, seed=world.seed, steps=steps, progress=progress
        )
    # Half precision: the shipped pair shall be small.
    save_model(model.half(), tokenizer, folder / name)
