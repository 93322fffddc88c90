"""Multiple-choice questions: how they are read, written as prompts and perturbed."""

from defuse.questions.control_tokens import draw_controls, load_tokens
from defuse.questions.load import Columns, given_questions, load_questions
from defuse.questions.perturb import SENTENCE, Perturbation, perturb
from defuse.questions.prompts import Score, ask, continuations, few_shot_part, letters
from defuse.questions.question import (
    CONTROL_TOKEN,
    FORGET_TOKEN,
    ORIGINAL,
    Position,
    Question,
    Replaced,
    Variant,
    chance,
)

__all__ = [
    "CONTROL_TOKEN",
    "FORGET_TOKEN",
    "ORIGINAL",
    "SENTENCE",
    "Columns",
    "Perturbation",
    "Position",
    "Question",
    "Replaced",
    "Score",
    "Variant",
    "ask",
    "chance",
    "continuations",
    "draw_controls",
    "few_shot_part",
    "given_questions",
    "letters",
    "load_questions",
    "load_tokens",
    "perturb",
]
