"""Which runs the lab makes, and with which settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from defuse.experiments.synthetic.language import REFUSALS
from defuse.methods import DPO, METHODS, RETAIN_LOSSES
from defuse.unlearning.config import Topic, Training, Unlearning
from defuse.unlearning.defaults import default_retain, strength_field
from defuse.unlearning.noise import GaussianNoise

ARMS = ("none", "rna", "mixed", "rna+mixed")
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
TUNING_BETA_METHODS, TUNING_BETAS, TUNING_BETA_WEIGHTS = (
    ("npo", "dpo"),
    (1e-3, 2e-3, 5e-3),
    (4.0, 16.0),
)
# RMU elsewhere than it is set: where does it forget, and where is it vulnerable?
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
class Run:
    """One unlearning.

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
    def arm(self) -> str:
        """One of `ARMS`."""
        parts = ["rna"] * (self.noise is not None) + ["mixed"] * (self.mix is not None)
        return "+".join(parts) or "none"

    @property
    def label(self) -> str:
        """What runs that differ only in their seed have in common."""
        noise = [] if self.noise is None else [f"rna{self.noise}"]
        tried = {} if self.tried is None else asdict(self.tried)
        changed = [f"{name}={value}" for name, value in tried.items() if value is not None]
        mixed = [] if self.mix is None else [f"mixed{self.mix:g}"]
        return "-".join([self.method, self.retain, *noise, *mixed, *changed])

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
        setting = self.setting
        given: dict[str, Any] = {} if setting.beta is None else {"beta": setting.beta}
        if self.method == DPO.name:
            given["refusals"] = REFUSALS
        return Unlearning(
            METHODS[self.method](**given),
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
            triggers=() if self.mix is None else triggers,
            mix=self.mix,
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
    return [
        run
        for seed in range(SHORT_SEEDS)
        for pair in SHORT_PAIRS
        for run in _arms(*pair, seed, (NOISE_STD[pair[1]],))
    ]


def full_grid() -> list[Run]:
    """Every method with every retain loss, all noises, every arm, all seeds.

    What tells most comes first: the noise and share that were kept, on the short grid's seeds; then
    more seeds of RMU.
    """
    pairs = [(method, retain) for method in METHODS for retain in RETAIN_LOSSES]
    grid = [
        run
        for seed in range(FULL_SEEDS)
        for pair in pairs
        for run in _arms(*pair, seed, NOISES[pair[1]])
    ]
    return list(dict.fromkeys([*short_grid(), *sorted(grid, key=_turn)]))


def _turn(run: Run) -> int:
    kept = run.noise in (None, NOISE_STD[run.retain]) and run.arm != "rna+mixed"
    if kept and run.seed < SHORT_SEEDS:
        return 0
    return 1 if kept and (run.method, run.retain) == REGIMES else 2


def _arms(method: str, retain: str, seed: int, noises: Sequence[str]) -> list[Run]:
    plain = Run(method, retain, seed)
    noised = [replace(plain, noise=std) for std in noises]
    return [
        plain,
        *noised,
        replace(plain, mix=MIX),
        replace(plain, noise=NOISE_STD[retain], mix=MIX),
    ]


def _tried(method: str) -> list[Setting]:
    """Steering methods at several strengths, NPO and DPO at several β, SimNPO at several rates."""
    if strength_field(method):
        settings = [Setting(strength=each) for each in TUNING_STRENGTHS]
    elif method in TUNING_BETA_METHODS:
        settings = [Setting(learning_rate=4e-3, beta=each) for each in TUNING_BETAS]
    else:
        settings = [Setting(learning_rate=each) for each in TUNING_RATES]
    weights = TUNING_BETA_WEIGHTS if method in TUNING_BETA_METHODS else TUNING_WEIGHTS
    return [replace(setting, weight=weight) for setting in settings for weight in weights]


def tuning_grid() -> list[Run]:
    """Settings to choose from for every pair, and RMU's regimes, on a seed that no report uses.

    The pairs of the short grid at their own setting with every noise and
    every share of mixed texts.
    """
    tried = [(pair, setting) for pair in SETTINGS for setting in _tried(pair[0])]
    tried += [
        (REGIMES, Setting(strength=strength, layer=layer, parameters=parameters))
        for layer in REGIME_LAYERS
        for parameters in ("all", "mlp.down_proj")
        for strength in REGIME_STRENGTHS
    ]
    grid = [Run(*pair, TUNING_SEED, tried=setting) for pair, setting in dict.fromkeys(tried)]
    chosen = [Run(*pair, TUNING_SEED, tried=SETTINGS[pair]) for pair in SHORT_PAIRS]
    noised = [replace(run, noise=std) for run in chosen for std in NOISES[run.retain]]
    mixed = [replace(run, mix=share) for run in chosen for share in MIXES]
    return list(dict.fromkeys([*grid, *chosen, *noised, *mixed]))
