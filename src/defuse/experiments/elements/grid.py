"""Which runs the main job makes, from which recipes, and about how much work each is."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from defuse.experiments.core.eta import step_work
from defuse.methods import METHODS, RETAIN_LOSSES, HiddenMSE, LogitKL, LogitMSE
from defuse.unlearning.defaults import default_retain, strength_field
from defuse.unlearning.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
# RNA's standard deviation in multiples of the hidden states' own. What is noised becomes the retain
# target: with hidden MSE it averages out, through the layers above to the logits it does not.
NOISE_STD = {"hidden_mse": "3x", "logit_kl": "0.3x", "logit_mse": "0.3x"}
ARMS = ("none", "RNA", "mixed")
MIX = 0.5  # the share of retain texts behind a forget-term
# Shares of the steps after which a run is asked: where seeds are compared, and elsewhere.
CURVE, COARSE_CURVE = (1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1), (1 / 2, 1)
SHORT_SEEDS, FULL_SEEDS = (1, 2), (1, 2, 3, 4, 5)
MAIN = ("rmu", default_retain("rmu"))
COMPARED = (MAIN, ("simnpo", default_retain("simnpo")))
# Questions of each domain at a run's end and on the way; fewer where there are many runs.
PANEL, FULL_PANEL, TUNING_PANEL = (100, 30), (50, 20), (24, 24)
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
class Run:
    """One unlearning of the model.

    `rna`: with noise; `mix`: with forget-terms mixed into the retain texts. `changes` are overrides
    of the recipe's fields, for tuning.
    """

    method: str
    retain: str
    rna: bool
    seed: int
    changes: tuple[str, ...] = ()
    mix: bool = False

    @property
    def arm(self) -> str:
        """One of `ARMS`."""
        return "mixed" if self.mix else "RNA" if self.rna else "none"

    @property
    def name(self) -> str:
        arm = [] if self.arm == "none" else [self.arm.lower()]
        return "-".join([self.method, self.retain, *arm, f"seed{self.seed}", *self.changes])

    def recipe(self, texts: Path, model: str) -> Recipe:
        """The shipped recipe with this run's noise, seed and changes, on the texts in `texts`."""
        overrides = [
            f"model={model}",
            f"seed={self.seed}",
            f"topics.0.forget={texts / 'forget.txt'}",
            f"topics.0.retain={texts / 'retain.txt'}",
            *([f"noise.std={NOISE_STD[self.retain]}"] if self.rna else []),
            *([f"topics.0.triggers={texts / 'triggers.txt'}"] if self.mix else []),
            *([f"topics.0.mix={MIX}"] if self.mix else []),
            *([f"method.refusals={texts / 'refusals.txt'}"] if self.method == "dpo" else []),
            *self.changes,
        ]
        return load_recipe(recipe_path(self.method, self.retain), overrides)


def recipe_path(method: str, retain: str) -> Path:
    """The shipped recipe of a method with a retain loss."""
    return RECIPES / "smollm2" / f"{method}-{retain}.yaml"


def short_grid() -> list[Run]:
    """RMU without a defence, with RNA and with forget-terms mixed in, seeds in turn."""
    return [run for seed in SHORT_SEEDS for run in _arms(MAIN, seed)]


def _arms(pair: tuple[str, str], seed: int) -> list[Run]:
    plain = Run(*pair, False, seed)
    return [plain, replace(plain, rna=True), replace(plain, mix=True)]


def panel(run: Run, *, at_end: bool) -> int:
    """How many questions of each domain a run is asked."""
    counts = FULL_PANEL
    if run.seed == TUNING_SEED:
        counts = TUNING_PANEL
    elif (run.method, run.retain) == MAIN:
        counts = PANEL
    return counts[0 if at_end else 1]


def full_grid() -> list[Run]:
    """Every method with every retain loss, without and with RNA.

    Those `COMPARED` with more seeds, and with forget-terms mixed in.
    """
    pairs = [(method, retain) for method in METHODS for retain in RETAIN_LOSSES]
    once = [Run(*pair, rna, FULL_SEEDS[0]) for pair in pairs for rna in (False, True)]
    again = [run for pair in COMPARED for seed in FULL_SEEDS for run in _arms(pair, seed)]
    return list(dict.fromkeys([*short_grid(), *again, *once]))


def tuning_grid() -> list[Run]:
    """Every method and retain loss at several learning rates; those `COMPARED` at several noises.

    All settings stand in `changes`, so that answers outlive a change of the recipes.
    """

    def run(pair: tuple[str, str], *changes: str) -> Run:
        rna = any(change.startswith("noise.") for change in changes)
        return Run(*pair, rna, TUNING_SEED, changes)

    pairs = [(method, retain) for method in METHODS for retain in RETAIN_LOSSES]
    grid = []
    for pair in pairs:
        shipped = load_recipe(recipe_path(*pair))
        stops = strength_field(pair[0]) is not None and pair[1] == HiddenMSE.name
        steps = f"steps={TUNING_STEPS if stops else TUNING_STEPS_TO_THE_TOP}"
        steers = strength_field(pair[0]) is not None
        # At the first weight, KL's own, this loss hardly lets go of anything.
        weighed = TUNING_WEIGHTS if steers and pair[1] == LogitMSE.name else ()
        weights = [(f"topics.0.weight={weight}",) for weight in weighed] or [()]
        rates = [f"learning_rate={rate}" for rate in TUNING_RATES]
        grid += [run(pair, steps, rate, *weights[0]) for rate in rates]
        grid += [run(pair, steps, rates[-1], *weight) for weight in weights[1:]]
        if steers and pair[1] == LogitKL.name:
            grid.append(run(pair, f"steps={TUNING_LONG}", f"learning_rate={TUNING_RATES[-1]}"))
        if pair in COMPARED:
            kept = (f"steps={shipped.steps}", f"learning_rate={shipped.learning_rate}")
            grid += [run(pair, *kept, f"noise.std={std}") for std in TUNING_STDS[pair[1]]]
    return grid


def curve(run: Run, steps: int) -> tuple[int, ...]:
    """The numbers of steps after which a run is asked; the last is `steps`."""
    compared = (run.method, run.retain) in COMPARED and run.seed != TUNING_SEED
    shares = CURVE if compared else COARSE_CURVE
    return tuple(sorted({math.ceil(steps * share) for share in shares}))


def training_work(recipe: Recipe) -> float:
    """About how many tokens one could push once through the whole model in the same time."""
    topic = recipe.topics[0].settings
    forget = recipe.batch_size * topic.forget_length
    retain = recipe.batch_size * topic.retain_length
    return recipe.steps * step_work(recipe.method.name, recipe.retain.loss, forget, retain)
