"""Unlearn knowledge from language models, and measure whether it holds.

Everything public is here; names are looked up on first use, so that `defuse --help` need not wait
for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defuse.data.corpora import load_texts
    from defuse.data.text import QuestionAnswer
    from defuse.evaluate import Evaluation, Settings, compare, evaluate_questions, summarise
    from defuse.experiments.core.experiment_file import Experiment, load_experiment
    from defuse.experiments.core.experiment_scenario import make_scenario
    from defuse.experiments.core.job import run_experiment
    from defuse.methods import DPO, NPO, RMU, RSV, AdaptiveRMU, HiddenMSE, LogitKL, LogitMSE, SimNPO
    from defuse.models.decoder import Decoder
    from defuse.models.load import LoadedModel, load_model
    from defuse.models.partial_load import load_part
    from defuse.models.save import save_changed, save_model
    from defuse.questions import Perturbation, Question, load_questions, perturb
    from defuse.unlearning.config import Topic, Training, Unlearning
    from defuse.unlearning.noise import GaussianNoise
    from defuse.unlearning.recipe import Recipe, load_recipe
    from defuse.unlearning.train import Result, StepRecord, unlearn
    from defuse.utils.errors import UsageError

_HOMES = {
    "defuse.data.corpora": ("load_texts",),
    "defuse.models.decoder": ("Decoder",),
    "defuse.utils.errors": ("UsageError",),
    "defuse.evaluate": (
        "Evaluation",
        "Settings",
        "compare",
        "evaluate_questions",
        "summarise",
    ),
    "defuse.experiments.core.experiment_file": ("Experiment", "load_experiment"),
    "defuse.experiments.core.experiment_scenario": ("make_scenario",),
    "defuse.experiments.core.job": ("run_experiment",),
    "defuse.methods": (
        "DPO",
        "NPO",
        "RMU",
        "RSV",
        "AdaptiveRMU",
        "HiddenMSE",
        "LogitKL",
        "LogitMSE",
        "SimNPO",
    ),
    "defuse.models.load": ("LoadedModel", "load_model"),
    "defuse.unlearning.noise": ("GaussianNoise",),
    "defuse.models.partial_load": ("load_part",),
    "defuse.questions": ("Perturbation", "Question", "load_questions", "perturb"),
    "defuse.unlearning.recipe": ("Recipe", "load_recipe"),
    "defuse.models.save": ("save_changed", "save_model"),
    "defuse.data.text": ("QuestionAnswer",),
    "defuse.unlearning.train": ("Result", "StepRecord", "unlearn"),
    "defuse.unlearning.config": ("Topic", "Training", "Unlearning"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DPO",
    "NPO",
    "RMU",
    "RSV",
    "AdaptiveRMU",
    "Decoder",
    "Evaluation",
    "Experiment",
    "GaussianNoise",
    "HiddenMSE",
    "LoadedModel",
    "LogitKL",
    "LogitMSE",
    "Perturbation",
    "Question",
    "QuestionAnswer",
    "Recipe",
    "Result",
    "Settings",
    "SimNPO",
    "StepRecord",
    "Topic",
    "Training",
    "Unlearning",
    "UsageError",
    "compare",
    "evaluate_questions",
    "load_experiment",
    "load_model",
    "load_part",
    "load_questions",
    "load_recipe",
    "load_texts",
    "make_scenario",
    "perturb",
    "run_experiment",
    "save_changed",
    "save_model",
    "summarise",
    "unlearn",
]


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'defuse' has no attribute {name!r}")
