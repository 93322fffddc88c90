"""The runs of the synthetic experiment, and their settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from defuse.experiments.core.scenario import Run
from defuse.methods import METHODS, RETAIN_LOSSES
from defuse.unlearning.defaults import default_retain, strength_field
from defuse.unlearning.recipe import Recipe
from defuse.utils.config import parse

# The shares of retain texts behind a statement of the forget domain: all tried, and the one kept.
MIXES, MIX = (0.05, 0.1, 0.25, 0.5), 0.1
# RNA's standard deviations in multiples of the hidden states' own: all that are tried, and the one
# kept. With hidden MSE the noise averages out; through the layers above to the logits it does not.
SMALL_NOISES = ("0.03x", "0.1x", "0.3x", "1x")
NOISES = {
    "hidden_mse": ("0.3x", "1x", "3x", "10x"),
    "logit_kl": SMALL_NOISES,
    "logit_mse": SMALL_NOISES,
}
NOISE_STD = {"hidden_mse": "10x", "logit_kl": "0.1x", "logit_mse": "0.1x"}
SHORT_PAIRS = tuple((method, default_retain(method)) for method in ("rmu", "simnpo"))
SHORT_SEEDS, FULL_SEEDS = 3, 10
REGIMES = ("rmu", "hidden_mse")
TUNING_SEED = 1000  # no report's
TUNING_STRENGTHS, TUNING_RATES = (8.0, 12.0, 16.0), (3e-3, 4e-3, 5e-3)
TUNING_WEIGHTS = (1.0, 2.0, 4.0)
# Over a whole row of sentences β = 0.1 is satisfied long before a fact is gone: the loss saturates.
TUNING_BETAS, TUNING_BETA_WEIGHTS = (1e-3, 2e-3, 5e-3), (4.0, 16.0)
# RMU at other layers than its own: where does it forget, and where is it vulnerable?
REGIME_LAYERS, REGIME_STRENGTHS = (1, 2, 3, 4, 5), (8.0, 16.0)
# Shares of the steps after which a run is asked.
CURVE = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class Setting:
    """What is tuned.

    `strength`: coefficient in mean hidden norms, or Adaptive RMU's scale. `beta`: a preference
    method's β; None is its own.
    """

    steps: int = 200
    learning_rate: float = 2e-3
    weight: float = 1.0
    strength: float = 8.0
    layer: int = 3
    parameters: str = "all"
    beta: float | None = None


# Chosen by `defuse lab --tune`.
SETTINGS: Mapping[tuple[str, str], Setting] = {
    ("rmu", "hidden_mse"): Setting(200, 2e-3, weight=4.0, strength=12.0),
    ("rmu", "logit_kl"): Setting(25, 2e-3, weight=4.0, strength=8.0),
    ("rmu", "logit_mse"): Setting(50, 2e-3, weight=4.0, strength=12.0),
    ("adaptive_rmu", "hidden_mse"): Setting(150, 2e-3, weight=4.0, strength=12.0),
    ("adaptive_rmu", "logit_kl"): Setting(25, 2e-3, weight=4.0, strength=8.0),
    ("adaptive_rmu", "logit_mse"): Setting(50, 2e-3, weight=4.0, strength=12.0),
    ("rsv", "hidden_mse"): Setting(100, 2e-3, weight=4.0, strength=8.0),
    ("rsv", "logit_kl"): Setting(200, 2e-3, weight=4.0, strength=16.0),
    ("rsv", "logit_mse"): Setting(100, 2e-3, weight=4.0, strength=12.0),
    ("npo", "hidden_mse"): Setting(150, 4e-3, weight=16.0, beta=1e-3),
    ("npo", "logit_kl"): Setting(50, 4e-3, weight=16.0, beta=2e-3),
    ("npo", "logit_mse"): Setting(75, 4e-3, weight=16.0, beta=1e-3),
    ("dpo", "hidden_mse"): Setting(100, 4e-3, weight=16.0, beta=1e-3),
    ("dpo", "logit_kl"): Setting(100, 4e-3, weight=4.0, beta=5e-3),
    ("dpo", "logit_mse"): Setting(200, 4e-3, weight=16.0, beta=1e-3),
    ("simnpo", "hidden_mse"): Setting(75, 5e-3, weight=1.0),
    ("simnpo", "logit_kl"): Setting(200, 4e-3, weight=1.0),
    ("simnpo", "logit_mse"): Setting(150, 5e-3, weight=2.0),
}


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    `noise`: RNA's standard deviation ("1x"). `mix`: the share of retain texts behind a statement of
    the forget domain. `tried`: a setting other than the pair's own, for tuning.
    """

    method: str
    retain: str
    seed: int
    noise: str | None = None
    mix: float | None = None
    tried: Setting | None = None

    @property
    def setting(self) -> Setting:
        return self.tried or SETTINGS[self.method, self.retain]

    @property
    def settings(self) -> tuple[str, ...]:
        """The fields of a setting that is tried, such as "layer=3"."""
        tried = {} if self.tried is None else asdict(self.tried)
        return tuple(f"{name}={value}" for name, value in tried.items() if value is not None)

    @property
    def defence(self) -> str:
        parts = ["rna"] * (self.noise is not None) + ["mixing"] * (self.mix is not None)
        return "+".join(parts) or "none"

    @property
    def name(self) -> str:
        """The name of the run's folder, as version 0.1.0 spells it."""
        noise = [] if self.noise is None else [f"rna{self.noise}"]
        mixed = [] if self.mix is None else [f"mixed{self.mix:g}"]
        parts = [self.method, self.retain, *noise, *mixed, *self.settings, f"seed{self.seed}"]
        return "-".join(parts)

    @property
    def group(self) -> str:
        """What runs that differ only in their seed have in common, in words."""
        noise = [] if self.noise is None else [f"rna {self.noise}"]
        mixed = [] if self.mix is None else [f"mixing {self.mix:g}"]
        pair = " ".join([f"{self.method} + {self.retain}", *self.settings])
        return ", ".join([pair, *([" + ".join([*noise, *mixed])] if noise or mixed else [])])

    def run(self, model: str, texts: Path, models: Path) -> Run:
        """The run on the reference `model`, with the texts in the folder `texts`."""
        steps = self.setting.steps
        settings = {"std": self.noise, "share": self.mix}
        return Run(
            name=self.name,
            group=self.group,
            base_group=replace(self, noise=None, mix=None).group,
            method=self.method,
            retain_loss=self.retain,
            defence=self.defence,
            seed=self.seed,
            recipe=self._recipe(model, texts, models / self.name),
            checkpoints=tuple(sorted({math.ceil(steps * share) for share in CURVE})),
            defence_settings=tuple((n, v) for n, v in settings.items() if v is not None),
            settings=self.settings,
            essence=(("setting", asdict(self.setting)),),
        )

    def _recipe(self, model: str, texts: Path, output: Path) -> Recipe:
        setting, field = self.setting, strength_field(self.method)
        method: dict[str, Any] = {"name": self.method}
        method |= {} if setting.beta is None else {"beta": setting.beta}
        method |= {"refusals": str(texts / "refusals.txt")} if self.method == "dpo" else {}
        strength = f"{setting.strength}x" if field == "coefficient" else setting.strength
        mixing = {"triggers": str(texts / "mixing.txt"), "mix": self.mix} if self.mix else {}
        topic = {
            "name": "lab",
            "forget": str(texts / "forget.txt"),
            "retain": str(texts / "retain.txt"),
            "forget_length": 64,
            "retain_length": 64,
            "weight": setting.weight,
            "packed": True,
            **({} if field is None else {field: strength}),
            **mixing,
        }
        fields = {
            "model": model,
            "output": str(output),
            "method": method,
            "retain": {"loss": self.retain},
            "noise": None if self.noise is None else {"std": self.noise},
            "layer": setting.layer,
            "train": {"parameters": setting.parameters},
            "loss_scale": "hidden_variance",
            "topics": [topic],
            "steps": setting.steps,
            "learning_rate": setting.learning_rate,
            "seed": self.seed,
            "shuffle": True,
            "device": "cpu",
            "dtype": "float32",
        }
        return parse(Recipe, fields, "lab")


def short_grid() -> list[Point]:
    """RMU and SimNPO with every defence, seeds in turn."""
    return [
        point
        for seed in range(SHORT_SEEDS)
        for pair in SHORT_PAIRS
        for point in _defences(*pair, seed, (NOISE_STD[pair[1]],))
    ]


def full_grid() -> list[Point]:
    """Every method with every retain loss, all noises, every defence, all seeds.

    The most informative come first: the noise and share that were kept, on the short grid's seeds;
    then more seeds of RMU.
    """
    pairs = [(method, retain) for method in METHODS for retain in RETAIN_LOSSES]
    grid = [
        point
        for seed in range(FULL_SEEDS)
        for pair in pairs
        for point in _defences(*pair, seed, NOISES[pair[1]])
    ]
    return list(dict.fromkeys([*short_grid(), *sorted(grid, key=_turn)]))


def attack_grid(*, full: bool) -> list[Point]:
    """RMU and SimNPO without and with RNA; `full`: all methods and retain losses, more seeds."""
    return [
        Point(*pair, seed, noise)
        for seed in range(SHORT_SEEDS if full else 1)
        for pair in (SETTINGS if full else SHORT_PAIRS)
        for noise in (None, NOISE_STD[pair[1]])
    ]


def _turn(point: Point) -> int:
    kept = point.noise in (None, NOISE_STD[point.retain]) and point.defence != "rna+mixing"
    if kept and point.seed < SHORT_SEEDS:
        return 0
    return 1 if kept and (point.method, point.retain) == REGIMES else 2


def _defences(method: str, retain: str, seed: int, noises: Sequence[str]) -> list[Point]:
    plain = Point(method, retain, seed)
    noised = [replace(plain, noise=std) for std in noises]
    both = replace(plain, noise=NOISE_STD[retain], mix=MIX)
    return [plain, *noised, replace(plain, mix=MIX), both]


def _tried(method: str) -> list[Setting]:
    """Steering methods at several strengths, NPO and DPO at several β, SimNPO at several rates."""
    if strength_field(method):
        settings = [Setting(strength=each) for each in TUNING_STRENGTHS]
    elif method in ("npo", "dpo"):
        settings = [Setting(learning_rate=4e-3, beta=each) for each in TUNING_BETAS]
    else:
        settings = [Setting(learning_rate=each) for each in TUNING_RATES]
    weights = TUNING_BETA_WEIGHTS if method in ("npo", "dpo") else TUNING_WEIGHTS
    return [replace(setting, weight=weight) for setting in settings for weight in weights]


def tuning_grid() -> list[Point]:
    """Settings to choose from for every pair, and RMU's regimes, on a seed that no report uses.

    The pairs of the short grid at their own setting with every noise and every share of mixing.
    """
    tried = [(pair, setting) for pair in SETTINGS for setting in _tried(pair[0])]
    tried += [
        (REGIMES, Setting(strength=strength, layer=layer, parameters=parameters))
        for layer in REGIME_LAYERS
        for parameters in ("all", "mlp.down_proj")
        for strength in REGIME_STRENGTHS
    ]
    grid = [Point(*pair, TUNING_SEED, tried=setting) for pair, setting in dict.fromkeys(tried)]
    chosen = [Point(*pair, TUNING_SEED, tried=SETTINGS[pair]) for pair in SHORT_PAIRS]
    noised = [replace(point, noise=std) for point in chosen for std in NOISES[point.retain]]
    mixed = [replace(point, mix=share) for point in chosen for share in MIXES]
    return list(dict.fromkeys([*grid, *chosen, *noised, *mixed]))
