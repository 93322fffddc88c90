"""Where the lab's tiny models are: shipped with the package, or taught anew."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from defuse.files import write_json
from defuse.lab.language import build_tokenizer
from defuse.lab.model import STEPS, Progress, teach
from defuse.lab.world import SEED, World
from defuse.models import LoadedModel, load_model, save_model
from defuse.provenance import versions

SHIPPED = Path(__file__).parent / "checkpoints"
SHIPPED_FORGET = "pathogens"


@dataclass(frozen=True)
class Pair:
    """`base` knows the whole world; `gold` never saw the forget domain's facts."""

    base: LoadedModel
    gold: LoadedModel


def models_folder(output: Path, seed: int, forget: str) -> Path:
    """Where the pair for a world and a forget domain lies: shipped, or below `output`."""
    if (seed, forget) == (SEED, SHIPPED_FORGET) and SHIPPED.is_dir():
        return SHIPPED
    return output / "models" / f"{forget}-seed{seed}"


def load_pair(folder: Path) -> Pair:
    """The two models in `folder`, in float32 on the CPU."""
    base, gold = (
        replace(load_model(str(folder / name), device="cpu", dtype="float32"), name=name)
        for name in ("base", "gold")
    )
    return Pair(base, gold)


def missing(folder: Path) -> list[str]:
    """Which of the two still have to be taught."""
    return [name for name in ("base", "gold") if not (folder / name / "config.json").is_file()]


def teach_pair(
    world: World,
    forget: str,
    folder: Path,
    on_step: Callable[[str, Progress], None],
    steps: int = STEPS,
) -> None:
    """Teach what is missing in `folder`, and write each model there when it is finished."""
    tokenizer = build_tokenizer(world)
    for name in missing(folder):
        without = forget if name == "gold" else None
        model = teach(
            world,
            tokenizer,
            without=without,
            seed=world.seed,
            steps=steps,
            on_step=lambda progress, name=name: on_step(name, progress),
        )
        # Half precision: the shipped pair shall be small.
        save_model(model.half(), tokenizer, folder / name)
    write_json(
        folder / "training.json",
        {"world_seed": world.seed, "forget": forget, "steps": steps, "versions": versions()},
    )
