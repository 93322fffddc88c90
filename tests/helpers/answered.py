"""Answer tables made by hand, and runs to go with them."""

from typing import Any

from defuse.experiments.core.answers import Answer, AnswerTable, Cell
from defuse.experiments.core.scenario import Run

NO_RECIPE: Any = None
PERTURBED = [
    Cell("places", variant, position)
    for position in ("before", "choice")
    for variant in ("control_token", "forget_token")
]
CELLS = {
    "forget": Cell("forget"),
    "retain": Cell("places"),
    **{f"{cell.position}_{cell.variant.partition('_')[0]}": cell for cell in PERTURBED},
}


def answers(n: int = 10, choices: int = 4, **right: int) -> AnswerTable:
    """The first `right[cell]` of `n` questions right, at log-probability -1, the others at -3."""
    even = (0.0,) * choices
    return {
        cell: {
            f"{i}": Answer(i < right.get(name, n), -1.0 if i < right.get(name, n) else -3.0, even)
            for i in range(n)
        }
        for name, cell in CELLS.items()
    }


def run(defence: str = "none", seed: int = 1, method: str = "rmu", said: str = "", **more) -> Run:
    """A run without a recipe: only its labels matter."""
    base = f"{method} + hidden_mse{said}"
    group = base if defence == "none" else f"{base}, {defence}"
    settings = more.pop("defence_settings", ())
    return Run(
        f"{group} {settings} {seed}", group + "".join(map(str, settings)), base, method,
        "hidden_mse", defence, seed, NO_RECIPE, (20, 40), settings, **more,
    )  # fmt: skip


REFERENCE = answers(forget=9, retain=8, before_forget=7, before_control=8)
HURT = answers(forget=3, retain=8, before_forget=2, before_control=7, choice_forget=6)
