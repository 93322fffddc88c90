"""Which runs the lab makes, and with which settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from defuse.defaults import default_retain, strength_field
from defuse.lab.language import REFUSALS
from defuse.methods import DPO, METHODS, RETAIN_LOSSES
from defuse.noise import GaussianNoise
from defuse.unlearning import Topic, Training, Unlearning

ARMS = ("none", "rna", "mixed", "rna+mixed")
NOISE_STD = "1x"  # of RNA, in multiples of the hidden states' own standard deviation
MIX = 0.5  # the share of retain texts behind a forget-term
NOISES = ("0.3x", "1x", "3x", "10x")
SHORT_METHODS, SHORT_SEEDS, FULL_SEEDS = ("rmu", "simnpo"), 3, 10
REGIMES = ("rmu", "hidden_mse")
TUNING_SEED = 1000  # no report's
TUNING_STRENGTHS, TUNING_RATES = (8.0, 12.0, 16.0), (2e-3, 3e-3, 5e-3)
TUNING_WEIGHTS = (1.0, 2.0, 4.0)
# RMU elsewhere than it is set: where does it forget, and where is it vulnerable?
REGIME_LAYERS, REGIME_STRENGTHS = (1, 2, 3, 4, 5), (8.0, 16.0)
# Shares of the steps after which a run is asked.
CURVE = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class Setting:
    """What is tuned. `strength`: coefficient in mean hidden norms, or Adaptive RMU's scale."""

    steps: int = 200
    learning_rate: float = 2e-3
    weight: float = 1.0
    strength: float = 8.0
    layer: int = 3
    parameters: str = "all"


SETTINGS: Mapping[tuple[str, str], Setting] = {
    (method, retain): Setting() for method in METHODS for retain in RETAIN_LOSSES
}


@dataclass(frozen=True)
class Run:
    """One unlearning. `noise`: RNA's standard deviation ("1x"), `mix`: with forget-terms mixed in.

    `tried`: a setting other than the pair's own, for tuning.
    """

    method: str
    retain: str
    seed: int
    noise: str | None = None
    mix: bool = False
    tried: Setting | None = None

    @property
    def arm(self) -> str:
        """One of `ARMS`."""
        parts = ["rna"] * (self.noise is not None) + ["mixed"] * self.mix
        return "+".join(parts) or "none"

    @property
    def label(self) -> str:
        """What runs that differ only in their seed have in common."""
        noise = [] if self.noise is None else [f"rna{self.noise}"]
        tried = {} if self.tried is None else asdict(self.tried)
        changed = [f"{name}={value}" for name, value in tried.items()]
        return "-".join([self.method, self.retain, *noise, *["mixed"] * self.mix, *changed])

    @property
    def name(self) -> str:
        return f"{self.label}-seed{self.seed}"

    @property
    def setting(self) -> Setting:
        return self.tried or SETTINGS[self.method, self.retain]

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The numbers of steps after which this run is asked; the last is all of them."""
        steps = self.setting.steps
        return tuple(sorted({math.ceil(steps * share) for share in CURVE}))

    def unlearning(self) -> Unlearning:
        """The method, retain loss and noise."""
        setting, methods = self.setting, {**METHODS, DPO.name: lambda: DPO(REFUSALS)}
        return Unlearning(
            methods[self.method](),
            RETAIN_LOSSES[self.retain](),
            None if self.noise is None else GaussianNoise(std=self.noise),
            layer=setting.layer,
            train_parameters=setting.parameters,
            loss_scale="hidden_variance",
        )

    def topic(self, forget: Sequence[str], retain: Sequence[str], triggers: Sequence[str]) -> Topic:
        """The texts, with `triggers` among them if this run mixes."""
        setting, field = self.setting, strength_field(self.method)
        strength = {} if field is None else {field: setting.strength}
        if field == "coefficient":
            strength = {field: f"{setting.strength}x"}
        return Topic(
            "lab",
            forget,
            retain,
            forget_length=64,
            retain_length=64,
            weight=setting.weight,
            packed=True,
            triggers=triggers if self.mix else (),
            mix=MIX if self.mix else None,
            **strength,
        )

    def training(self) -> Training:
        """The loop."""
        setting = self.setting
        return Training(
            setting.steps, learning_rate=setting.learning_rate, seed=self.seed, shuffle=True
        )


def short_grid() -> list[Run]:
    """RMU and SimNPO in every arm, seeds in turn."""
    pairs = [(method, default_retain(method)) for method in SHORT_METHODS]
    return [
        run
        for seed in range(SHORT_SEEDS)
        for pair in pairs
        for run in _arms(*pair, seed, (NOISE_STD,))
    ]


def full_grid() -> list[Run]:
    """Every method with every retain loss, all noises, every arm, all seeds."""
    pairs = [(method, retain) for method in METHODS for retain in RETAIN_LOSSES]
    grid = [
        run for seed in range(FULL_SEEDS) for pair in pairs for run in _arms(*pair, seed, NOISES)
    ]
    return list(dict.fromkeys([*short_grid(), *grid]))


def _arms(method: str, retain: str, seed: int, noises: Sequence[str]) -> list[Run]:
    plain = Run(method, retain, seed)
    noised = [replace(plain, noise=std) for std in noises]
    return [plain, *noised, replace(plain, mix=True), replace(plain, noise=NOISE_STD, mix=True)]


def tuning_grid() -> list[Run]:
    """Settings to choose from for every pair, and RMU's regimes, on a seed that no report uses.

    Steering methods at several strengths, the others at several rates; all at several weights.
    """
    tried: list[tuple[tuple[str, str], Setting]] = []
    for pair in SETTINGS:
        steers = strength_field(pair[0]) is not None
        tried += [
            (
                pair,
                Setting(strength=each, weight=weight)
                if steers
                else Setting(learning_rate=each, weight=weight),
            )
            for each in (TUNING_STRENGTHS if steers else TUNING_RATES)
            for weight in TUNING_WEIGHTS
        ]
    tried += [
        (REGIMES, Setting(strength=strength, layer=layer, parameters=parameters))
        for layer in REGIME_LAYERS
        for parameters in ("all", "mlp.down_proj")
        for strength in REGIME_STRENGTHS
    ]
    return [Run(*pair, TUNING_SEED, tried=setting) for pair, setting in dict.fromkeys(tried)]
