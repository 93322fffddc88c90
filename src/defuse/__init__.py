"""Unlearn knowledge from language models, and measure whether it holds.

Everything public is here; names are looked up on first use, so that `defuse --help` need not wait
for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defuse.corpora import load_texts
    from defuse.decoder import Decoder
    from defuse.errors import UsageError
    from defuse.evaluate import Evaluation, Settings, compare, evaluate_questions, summarise
    from defuse.methods import (
        DPO,
        NPO,
        RMU,
        RSV,
        AdaptiveRMU,
        HiddenMSE,
        LogitKL,
        LogitMSE,
        SimNPO,
    )
    from defuse.models import LoadedModel, load_model
    from defuse.noise import GaussianNoise
    from defuse.partial import load_part
    from defuse.questions import Perturbation, Question, load_questions, perturb
    from defuse.recipe import Recipe, load_recipe
    from defuse.saving import save_changed, save_model
    from defuse.texts import QuestionAnswer
    from defuse.train import Result, StepRecord, unlearn
    from defuse.unlearning import Topic, Training, Unlearning

_HOMES = {
    "defuse.corpora": ("load_texts",),
    "defuse.decoder": ("Decoder",),
    "defuse.errors": ("UsageError",),
    "defuse.evaluate": (
        "Evaluation",
        "Settings",
        "compare",
        "evaluate_questions",
        "summarise",
    ),
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
    "defuse.models": ("LoadedModel", "load_model"),
    "defuse.noise": ("GaussianNoise",),
    "defuse.partial": ("load_part",),
    "defuse.questions": ("Perturbation", "Question", "load_questions", "perturb"),
    "defuse.recipe": ("Recipe", "load_recipe"),
    "defuse.saving": ("save_changed", "save_model"),
    "defuse.texts": ("QuestionAnswer",),
    "defuse.train": ("Result", "StepRecord", "unlearn"),
    "defuse.unlearning": ("Topic", "Training", "Unlearning"),
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
    "load_model",
    "load_part",
    "load_questions",
    "load_recipe",
    "load_texts",
    "perturb",
    "save_changed",
    "save_model",
    "summarise",
    "unlearn",
]


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'defuse' has no attribute {name!r}")
