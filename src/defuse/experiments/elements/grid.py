"""The runs of the elements experiment, from the shipped recipes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from defuse.experiments.core.scenario import Run
from defuse.methods import METHODS, RETAIN_LOSSES, HiddenMSE, LogitKL, LogitMSE
from defuse.recipes import shipped_recipe
from defuse.unlearning.defaults import default_retain, strength_field
from defuse.unlearning.recipe import Recipe, load_recipe

# RNA's standard deviation in multiples of the hidden states' own. What is noised becomes the retain
# target: with hidden MSE it averages out, through the layers above to the logits it does not.
NOISE_STD = {"hidden_mse": "3x", "logit_kl": "0.3x", "logit_mse": "0.3x"}
MIX = 0.5  # the share of retain texts behind a forget-token
# Shares of the steps after which a run is asked: where seeds are compared, and elsewhere.
CURVE, COARSE_CURVE = (1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1), (1 / 2, 1)
SHORT_SEEDS, FULL_SEEDS = (1, 2), (1, 2, 3, 4, 5)
MAIN = ("rmu", default_retain("rmu"))
COMPARED = (MAIN, ("simnpo", default_retain("simnpo")))
# Settings tried on the tuning questions, with a seed that no report uses.
TUNING_SEED = 0
TUNING_RATES = (0.001, 0.003)
TUNING_STDS = {
    HiddenMSE.name: ("0.3x", "1x", "3x", "10x"),
    LogitKL.name: ("0.03x", "0.1x", "0.3x", "1x"),
}
TUNING_STEPS, TUNING_STEPS_TO_THE_TOP = 120, 40
TUNING_WEIGHTS = (10, 1)
TUNING_LONG = 160  # steps: does training on after forgetting bring the vulnerability to KL, too?


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    `rna`: with noise; `mix`: with forget-tokens mixed into the retain texts. `changes` are
    overrides of the recipe's fields, for tuning.
    """

    method: str
    retain: str
    rna: bool
    seed: int
    changes: tuple[str, ...] = ()
    mix: bool = False

    @property
    def defence(self) -> str:
        return "mixing" if self.mix else "rna" if self.rna else "none"

    @property
    def name(self) -> str:
        """The name of the run's folder, as version 0.1.0 spells it."""
        defence = {"none": [], "rna": ["rna"], "mixing": ["mixed"]}[self.defence]
        return "-".join([self.method, self.retain, *defence, f"seed{self.seed}", *self.changes])

    @property
    def questions(self) -> str:
        """Which question list is asked: fewer questions where there are many runs."""
        if self.seed == TUNING_SEED:
            return "tuning"
        return "reported" if (self.method, self.retain) == MAIN else "fewer"

    def run(self, model: str, home: Path) -> Run:
        """The run on the model `model`, with the texts in `home`."""
        recipe = self.recipe(model, home)
        compared = (self.method, self.retain) in COMPARED and self.seed != TUNING_SEED
        shares = CURVE if compared else COARSE_CURVE
        noise = [c.partition("=")[2] for c in self.changes if c.startswith("noise.std=")]
        std = (noise or [NOISE_STD[self.retain]])[0]
        settings = tuple(c for c in self.changes if not c.startswith(("noise.", "steps=")))
        pair = " ".join([f"{self.method} + {self.retain}", *settings])
        said = {"none": "", "rna": f", rna {std}", "mixing": f", mixing {MIX:g}"}[self.defence]
        defence = {"none": (), "rna": (("std", std),), "mixing": (("share", MIX),)}[self.defence]
        return Run(
            name=self.name,
            group=pair + said,
            base_group=pair,
            method=self.method,
            retain_loss=self.retain,
            defence=self.defence,
            seed=self.seed,
            recipe=recipe,
            checkpoints=tuple(sorted({math.ceil(recipe.steps * share) for share in shares})),
            defence_settings=defence,
            settings=settings,
            questions=self.questions,
        )

    def recipe(self, model: str, home: Path) -> Recipe:
        """The shipped recipe with this point's noise, seed and changes, on the texts in `home`."""
        texts = home / "texts"
        overrides = [
            f"model={model}",
            f"output={home / 'models' / self.name}",
            f"seed={self.seed}",
            "dtype=float32",
            f"topics.0.forget={texts / 'forget.txt'}",
            f"topics.0.retain={texts / 'retain.txt'}",
            *([f"noise.std={NOISE_STD[self.retain]}"] if self.rna else []),
            *([f"topics.0.triggers={texts / 'triggers.txt'}"] if self.mix else []),
            *([f"topics.0.mix={MIX}"] if self.mix else []),
            *([f"method.refusals={texts / 'refusals.txt'}"] if self.method == "dpo" else []),
            *self.changes,
        ]
        return load_recipe(shipped_recipe(f"smollm2/{self.method}-{self.retain}"), overrides)


def short_grid() -> list[Point]:
    """RMU without a defence, with RNA and with mixing, seeds in turn."""
    return [point for seed in SHORT_SEEDS for point in _defences(MAIN, seed)]


def full_grid() -> list[Point]:
    """Every method with every retain loss, without and with RNA.

    Those `COMPARED` with more seeds, and with mixing.
    """
    pairs = [(method, retain) for method in METHODS for retain in RETAIN_LOSSES]
    once = [Point(*pair, rna, FULL_SEEDS[0]) for pair in pairs for rna in (False, True)]
    again = [p for pair in COMPARED for seed in FULL_SEEDS for p in _defences(pair, seed)]
    return list(dict.fromkeys([*short_grid(), *again, *once]))


def attack_grid(*, full: bool) -> list[Point]:
    """RMU without and with RNA; `full`: SimNPO, too, and two seeds."""
    pairs, seeds = (COMPARED, SHORT_SEEDS) if full else ((MAIN,), SHORT_SEEDS[:1])
    return [Point(*pair, rna, seed) for seed in seeds for pair in pairs for rna in (False, True)]


def _defences(pair: tuple[str, str], seed: int) -> list[Point]:
    plain = Point(*pair, False, seed)
    return [plain, replace(plain, rna=True), replace(plain, mix=True)]


def tuning_grid() -> list[Point]:
    """Every method and retain loss at several learning rates; those `COMPARED` at several noises.

    All settings are in `changes`, so that answers outlive a change of the recipes.
    """
    pairs = [(method, retain) for method in METHODS for retain in RETAIN_LOSSES]
    return [point for pair in pairs for point in _tried(pair)]


def _tried(pair: tuple[str, str]) -> Iterator[Point]:
    def point(*changes: str) -> Point:
        rna = any(change.startswith("noise.") for change in changes)
        return Point(*pair, rna, TUNING_SEED, changes)

    steers = strength_field(pair[0]) is not None
    stops = steers and pair[1] == HiddenMSE.name
    steps = f"steps={TUNING_STEPS if stops else TUNING_STEPS_TO_THE_TOP}"
    # At the first weight, KL's own, this loss hardly lets go of anything.
    weighed = TUNING_WEIGHTS if steers and pair[1] == LogitMSE.name else ()
    weights = [(f"topics.0.weight={weight}",) for weight in weighed] or [()]
    rates = [f"learning_rate={rate}" for rate in TUNING_RATES]
    yield from (point(steps, rate, *weights[0]) for rate in rates)
    yield from (point(steps, rates[-1], *weight) for weight in weights[1:])
    if steers and pair[1] == LogitKL.name:
        yield point(f"steps={TUNING_LONG}", f"learning_rate={TUNING_RATES[-1]}")
    if pair in COMPARED:
        shipped = load_recipe(shipped_recipe(f"smollm2/{pair[0]}-{pair[1]}"))
        kept = (f"steps={shipped.steps}", f"learning_rate={shipped.learning_rate}")
        yield from (point(*kept, f"noise.std={std}") for std in TUNING_STDS[pair[1]])
