"""RMU at every layer: where it forgets, and where it is vulnerable."""

from collections.abc import Mapping

from defuse.experiments.core.answers import (
    CONTROL_TOKEN,
    FORGET,
    FORGET_TOKEN,
    RETAIN,
    AnswerTable,
    Slice,
    pooled,
)
from defuse.experiments.core.metrics import Checkpoints, mean
from defuse.experiments.core.scenario import Run
from defuse.experiments.core.selection import trials
from defuse.experiments.core.tables import slice_name
from defuse.experiments.synthetic.grid import REGIMES
from defuse.experiments.synthetic.questions import INTERIM_POSITIONS
from defuse.report.format import markdown_table

SLICES = (
    FORGET,
    RETAIN,
    *(Slice("retain", v, p) for p in INTERIM_POSITIONS for v in (CONTROL_TOKEN, FORGET_TOKEN)),
)
HEAD = ("layer", "parameters", "c, norms", "weight", "step", *map(slice_name, SLICES))


def regimes(finished: Mapping[Run, Checkpoints], reference: AnswerTable) -> str:
    """Each setting's cheapest checkpoint, and the accuracies there."""
    rows = []
    for run, steps in finished.items():
        if (run.method, run.retain_loss) == REGIMES and run.defence == "none":
            best, setting = (
                trials({run: steps}, reference, None)[0].step,
                dict(run.essence)["setting"],
            )
            names = ("layer", "parameters", "strength", "weight")
            given = [f"{v:g}" if isinstance(v, float) else str(v) for v in map(setting.get, names)]
            table = steps[best]
            shares = (mean(table, part, list(pooled(table, part)), "correct") for part in SLICES)
            rows.append([*given, str(best), *(f"{share:.2f}" for share in shares)])
    return markdown_table(HEAD, sorted(rows))
