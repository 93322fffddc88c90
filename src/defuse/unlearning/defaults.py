"""The table of default steps, learning rates, weights and strengths, per method and retain loss.

Published values come from the authors' code of arXiv 2501.19202 (docs/methods.md). They were tuned
for 7B models and the mean log-probability (`normalise: mean`); `with_defaults` fits them to sums.
The other rows are our own untuned starting points for pairs that the code does not run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from defuse.methods import (
    DPO,
    METHODS,
    NPO,
    RMU,
    RSV,
    AdaptiveRMU,
    HiddenMSE,
    LogitKL,
    LogitMSE,
    Method,
    RepresentationMethod,
    Retain,
    SimNPO,
)
from defuse.unlearning.config import Topic
from defuse.utils.errors import require


@dataclass(frozen=True)
class Defaults:
    """`weight`: of the retain loss (α); a topic called "cyber" has its own. `strength`: c or β."""

    steps: int
    learning_rate: float
    weight: float
    cyber_weight: float
    strength: float | None = None
    published: bool = False

    def weight_for(self, topic: object) -> float:
        return self.cyber_weight if topic == "cyber" else self.weight


HIDDEN, KL, MSE = HiddenMSE.name, LogitKL.name, LogitMSE.name
DEFAULTS: Mapping[tuple[str, str], Defaults] = {
    (RMU.name, HIDDEN): Defaults(500, 5e-5, 1200, 1200, 6.5, published=True),
    (RMU.name, KL): Defaults(500, 5e-5, 1, 1, 6.5),
    (RMU.name, MSE): Defaults(500, 5e-5, 0.25, 0.25, 6.5),
    (AdaptiveRMU.name, HIDDEN): Defaults(500, 5e-5, 1200, 1200, 3, published=True),
    (AdaptiveRMU.name, KL): Defaults(500, 5e-5, 1, 1, 3),
    (AdaptiveRMU.name, MSE): Defaults(500, 5e-5, 0.25, 0.25, 3),
    (RSV.name, HIDDEN): Defaults(500, 5e-5, 1200, 1200, 10, published=True),
    (RSV.name, KL): Defaults(500, 5e-5, 1, 1, 10),
    (RSV.name, MSE): Defaults(500, 5e-5, 0.25, 0.25, 10),
    (NPO.name, HIDDEN): Defaults(150, 2e-5, 1200, 1200),
    (NPO.name, KL): Defaults(150, 2e-5, 50, 50, published=True),
    (NPO.name, MSE): Defaults(150, 2e-5, 5, 20, published=True),
    (DPO.name, HIDDEN): Defaults(500, 5e-5, 1200, 1200),
    (DPO.name, KL): Defaults(500, 5e-5, 30, 50, published=True),
    (DPO.name, MSE): Defaults(500, 5e-5, 5, 20, published=True),
    (SimNPO.name, HIDDEN): Defaults(50, 2e-5, 1200, 1200),
    (SimNPO.name, KL): Defaults(50, 2e-5, 20, 50, published=True),
    (SimNPO.name, MSE): Defaults(50, 2e-5, 10, 5, published=True),
}


def default_retain(method: str) -> str:
    """The retain loss of a recipe that gives none."""
    return KL if strength_field(method) is None else HIDDEN


def strength_field(method: str) -> str | None:
    """The topic's field with the strength of a method's steering; None for preference methods."""
    return getattr(METHODS[method], "strength_field", None)


def with_defaults(topic: Topic, method: Method, retain: Retain) -> Topic:
    """`topic` with the table's weight and strength where it has none.

    With `normalise: sum` the weight is multiplied by the topic's `forget_length`.

    Raises UsageError if the table has none either, as for a method of one's own.
    """
    row = DEFAULTS.get((getattr(method, "name", ""), getattr(retain, "name", "")))
    # A summed log-probability has as many times the gradient of the mean as a text has tokens.
    tokens = topic.forget_length if getattr(method, "normalise", "mean") == "sum" else 1
    wanted = {"weight": row and float(row.weight_for(topic.name) * tokens)}
    if isinstance(method, RepresentationMethod):
        wanted[method.strength_field] = row and row.strength and float(row.strength)
    missing = {field: value for field, value in wanted.items() if getattr(topic, field) is None}
    for field, value in missing.items():
        remedy = f"has no default for {type(method).__name__}; give one"
        require(value is not None, f"topics.{topic.name}.{field}", None, remedy)
    return replace(topic, **missing)


def markdown_table() -> str:
    """The table in the form of docs/defaults.md."""
    names = ("method", "retain loss", "steps", "learning rate", "weight", "weight (cyber)")
    lines = [(*names, "strength", "from"), ("---",) * 8]
    for (method, retain), row in DEFAULTS.items():
        field = strength_field(method)
        lines.append(
            (
                f"`{method}`",
                f"`{retain}`",
                str(row.steps),
                f"{row.learning_rate:.0e}",
                f"{row.weight:g}",
                f"{row.cyber_weight:g}",
                f"`{field}: {row.strength:g}`" if field else "",
                "authors' code" if row.published else "ours, untuned",
            )
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
