"""Where the lab's tiny models are: shipped with the package, or taught anew."""

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from defuse.experiments.synthetic.domains import DOMAINS
from defuse.experiments.synthetic.language import build_tokenizer
from defuse.experiments.synthetic.model import STEPS, Progress, teach
from defuse.experiments.synthetic.world import SEED, SIZE, World
from defuse.models.load import LoadedModel, load_model
from defuse.models.save import save_model
from defuse.utils.files import write_json
from defuse.utils.progress import duration
from defuse.utils.provenance import versions

SHIPPED = Path(__file__).parent / "checkpoints"
SHIPPED_FORGET = "pathogens"
NAMES = ("base", "gold")
SAY_EVERY = 100  # steps


@dataclass(frozen=True)
class Pair:
    """`base` knows the whole world; `gold` never saw the forget domain's facts."""

    base: LoadedModel
    gold: LoadedModel


def is_shipped(world: World, forget: str) -> bool:
    """Whether the package's own models are about this world and lack this domain."""
    return (world.seed, world.size, tuple(world.domains), forget) == (
        *(SEED, SIZE, DOMAINS),
        SHIPPED_FORGET,
    )


def world_label(world: World, forget: str) -> str:
    """A name for folders: what is forgotten, the seed, and what is not as usual."""
    size = "" if world.size == SIZE else f"-size{world.size}"
    names = "" if tuple(world.domains) == DOMAINS else "".join(f"-{d.name}" for d in world.domains)
    return f"{forget}-seed{world.seed}{size}{names}"


def models_folder(output: Path, world: World, forget: str) -> Path:
    """Where the pair for a world and a forget domain lies: shipped, or below `output`."""
    if is_shipped(world, forget) and not missing(SHIPPED):
        return SHIPPED
    return output / "models" / world_label(world, forget)


def load_pair(folder: Path) -> Pair:
    """The two models in `folder`, in float32 on the CPU."""
    base, gold = (
        replace(load_model(str(folder / name), device="cpu", dtype="float32"), name=name)
        for name in NAMES
    )
    return Pair(base, gold)


def digest(folder: Path) -> str:
    """SHA-256 of both models' weights: answers of one pair are not those of another."""
    found = hashlib.sha256()
    for name in NAMES:
        found.update((folder / name / "model.safetensors").read_bytes())
    return found.hexdigest()


def missing(folder: Path) -> list[str]:
    """Which of the two still have to be taught."""
    return [name for name in NAMES if not (folder / name / "config.json").is_file()]


def teach_pair(world: World, forget: str, folder: Path, steps: int = STEPS) -> None:
    """Teach what is missing in `folder`, side by side; each is written when it is finished."""
    names = missing(folder)
    _teach_side_by_side(names, partial(_teach_one, world, forget, folder, steps))
    write_json(
        folder / "training.json",
        {
            "world_seed": world.seed,
            "size": world.size,
            "domains": [domain.name for domain in world.domains],
            "forget": forget,
            "steps": steps,
            "versions": versions(),
        },
    )


def _teach_side_by_side(names: Sequence[str], task: partial[None]) -> None:
    with ProcessPoolExecutor(len(names) or 1, get_context("spawn")) as pool:
        for future in [pool.submit(task, name) for name in names]:
            future.result()


def _teach_one(world: World, forget: str, folder: Path, steps: int, name: str) -> None:
    torch.set_num_threads(1)  # tiny tensors gain nothing from a second thread
    began = time.monotonic()

    def say(progress: Progress) -> None:
        if progress.step % SAY_EVERY == 0:
            left = (time.monotonic() - began) * (progress.steps / progress.step - 1)
            print(
                f"{name}: step {progress.step} of {progress.steps}, loss of statements "
                f"{progress.statement_loss:.2f}, of answers {progress.answer_loss:.2f} nats; "
                f"{duration(left)} left",
                flush=True,
            )

    tokenizer = build_tokenizer(world)
    without = forget if name == "gold" else None
    model = teach(world, tokenizer, without=without, seed=world.seed, steps=steps, on_step=say)
    # Half precision: the shipped pair shall be small.
    save_model(model.half(), tokenizer, folder / name)
