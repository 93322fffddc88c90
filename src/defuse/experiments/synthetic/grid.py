"""The runs of the synthetic experiment, from the settings in lab.yaml."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from defuse.experiments.core.experiment_runs import checkpoints, combinations
from defuse.experiments.core.scenario import Run
from defuse.unlearning.defaults import strength_field
from defuse.unlearning.recipe import Recipe
from defuse.utils.config import parse, read_fields

Pair = tuple[str, str]  # a method and a retain loss

SHORT_SEEDS, FULL_SEEDS, TUNING_SEED = range(3), range(10), 1000
# Shares of the steps after which a run is asked, besides the last; its figures are means over the
# last three.
CURVE = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 7 / 8)
LAB = read_fields(Path(__file__).with_name("lab.yaml"))
# A defence's word in names of folders, as version 0.1.0 has it, and the name of its setting.
FOLDER_WORDS = {"rna": "rna", "mixing": "mixed"}
DEFENCE_SETTINGS = {"rna": "std", "mixing": "share"}
MAIN: Pair = ("rmu", "hidden_mse")
SHORT_PAIRS: tuple[Pair, ...] = (MAIN, ("simnpo", "logit_kl"))


@dataclass(frozen=True)
class Setting:
    """What is tuned of a method with a retain loss; lab.yaml explains some of its fields."""

    steps: int = 200
    learning_rate: float = 2e-3
    weight: float = 1.0
    strength: float = 8.0
    layer: int = 3
    parameters: str = "all"
    beta: float | None = None
    schedule: str | None = None


SETTINGS: Mapping[Pair, Setting] = {
    (method, retain): parse(Setting, given, f"{method}.{retain}")
    for method, own in LAB["settings"].items()
    for retain, given in own.items()
}


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    `rna`: the noise's standard deviation ("1x"). `mixing`: the share of retain texts behind a
    statement of the forget domain. `tried`: a setting other than the pair's own, for tuning.
    """

    pair: Pair
    seed: int
    rna: str | None = None
    mixing: float | None = None
    tried: Setting | None = None

    def run(self, model: str, folder: Path) -> Run:
        """The run on the reference `model`, with texts and output in `folder`.

        Its folder has the name that version 0.1.0 gave it.
        """
        setting, (method, retain) = self.tried or SETTINGS[self.pair], self.pair
        tried = {} if self.tried is None else asdict(self.tried)
        settings = tuple(f"{name}={value}" for name, value in tried.items() if value is not None)
        defences = [(d, value) for d in DEFENCE_SETTINGS if (value := getattr(self, d)) is not None]
        words = [f"{FOLDER_WORDS[d]}{value}" for d, value in defences]
        name = "-".join([method, retain, *words, *settings, f"seed{self.seed}"])
        base_group = " ".join([f"{method} + {retain}", *settings])
        said = " + ".join(f"{d} {value}" for d, value in defences)
        return Run(
            name=name,
            group=f"{base_group}, {said}" if said else base_group,
            base_group=base_group,
            method=method,
            retain_loss=retain,
            defence="+".join(d for d, _ in defences) or "none",
            seed=self.seed,
            recipe=self._recipe(setting, model, folder / "texts", folder / "models" / name),
            checkpoints=checkpoints(CURVE, setting.steps),
            defence_settings=tuple((DEFENCE_SETTINGS[d], value) for d, value in defences),
            settings=settings,
            essence=(("setting", _essence(setting)),),
        )

    def _recipe(self, setting: Setting, model: str, texts: Path, output: Path) -> Recipe:
        name, retain = self.pair
        field = strength_field(name)
        method: dict[str, Any] = {"name": name}
        topic = LAB["topic"] | {kind: str(texts / f"{kind}.txt") for kind in ("forget", "retain")}
        topic["weight"] = setting.weight
        if field is not None:
            topic[field] = f"{setting.strength}x" if field == "coefficient" else setting.strength
        if self.mixing is not None:
            topic |= {"triggers": str(texts / "mixing.txt"), "mix": self.mixing}
        if setting.beta is not None:
            method["beta"] = setting.beta
        if name == "dpo":
            method["refusals"] = str(texts / "refusals.txt")
        fields = {
            "model": model,
            "output": str(output),
            "method": method,
            "retain": {"loss": retain},
            "noise": None if self.rna is None else {"std": self.rna},
            "layer": setting.layer,
            "train": {"parameters": setting.parameters},
            "topics": [topic],
            "steps": setting.steps,
            "learning_rate": setting.learning_rate,
            "optimiser": setting.schedule and {"schedule": setting.schedule},
            "seed": self.seed,
        }
        return parse(Recipe, LAB["recipe"] | fields, "lab")


def _essence(setting: Setting) -> dict[str, Any]:
    """A setting as version 0.1.0 kept it with the answers; a schedule is part of the recipe."""
    return {name: value for name, value in asdict(setting).items() if name != "schedule"}


def short_grid() -> list[Point]:
    """RMU and SimNPO with every defence, seeds in turn."""
    return _defended(SHORT_PAIRS, SHORT_SEEDS)


def full_grid() -> list[Point]:
    """Every method with every retain loss, all noises, every defence, all seeds.

    The most informative come first: the noise and share that were kept, on the short grid's seeds;
    then more seeds of RMU.
    """
    first = [*_defended(SETTINGS, SHORT_SEEDS), *_defended([MAIN], FULL_SEEDS)]
    single = [point for point in first if None in (point.rna, point.mixing)]
    every = _defended(SETTINGS, FULL_SEEDS, all_noises=True)
    return list(dict.fromkeys([*short_grid(), *single, *every]))


def attack_grid(*, full: bool) -> list[Point]:
    """RMU and SimNPO without and with RNA; `full`: all methods and retain losses, more seeds."""
    pairs, seeds = (SETTINGS, SHORT_SEEDS) if full else (SHORT_PAIRS, SHORT_SEEDS[:1])
    return [point for point in _defended(pairs, seeds) if point.mixing is None]


def tuning_grid() -> list[Point]:
    """Settings to choose from for every pair, and RMU at every layer, on a seed of its own.

    The pairs of the short grid have their own setting with every noise and every share of mixing.
    """
    tried = [(pair, setting) for pair in SETTINGS for setting in _settings(LAB["tuning"][pair[0]])]
    tried += [(MAIN, setting) for setting in _settings(LAB["layers"])]
    tried += [(pair, SETTINGS[pair]) for pair in SHORT_PAIRS]
    points = [Point(pair, TUNING_SEED, tried=setting) for pair, setting in tried]
    chosen = points[-len(SHORT_PAIRS) :]
    noised = [replace(p, rna=std) for p in chosen for std in LAB["rna"][p.pair[1]]["tried"]]
    mixed = [replace(p, mixing=share) for p in chosen for share in LAB["mixing"]["tried"]]
    return list(dict.fromkeys([*points, *noised, *mixed]))


def kept_rna(retain: str) -> str:
    """RNA's standard deviation that was kept for a retain loss."""
    return LAB["rna"][retain]["kept"]


def _defended(
    pairs: Iterable[Pair], seeds: Iterable[int], *, all_noises: bool = False
) -> list[Point]:
    """Each pair without a defence, with RNA, with mixing and with both, seeds in turn."""
    share = LAB["mixing"]["kept"]
    return [
        Point(pair, seed, *defence)
        for seed in seeds
        for pair in pairs
        for rna in [LAB["rna"][pair[1]]]
        for defence in (
            (),
            *((std,) for std in (rna["tried"] if all_noises else [rna["kept"]])),
            (None, share),
            (rna["kept"], share),
        )
    ]


def _settings(values: Mapping[str, Sequence[Any]]) -> Iterator[Setting]:
    """A setting for every combination of `values`."""
    return (parse(Setting, chosen) for chosen in combinations(values))
