"""Experiments by name: a file, a shipped file, or one of the two whose data are made by code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defuse.experiments.core.attacks import AttackPlan
from defuse.experiments.core.experiment_file import attack_plan, load_experiment
from defuse.experiments.core.scenario import Scenario
from defuse.experiments.elements import scenario as elements
from defuse.experiments.synthetic import scenario as synthetic
from defuse.utils.config import parse, set_fields


@dataclass(frozen=True)
class Made:
    """An experiment whose data are made by code: its options, and its scenario."""

    options: type
    make_scenario: Callable[[Any], Scenario]


MADE: Mapping[str, Made] = {
    "elements": Made(elements.Options, elements.make_scenario),
    "synthetic": Made(synthetic.Options, synthetic.make_scenario),
}


def find_experiment(
    name: Path, overrides: Sequence[str] = (), command: str = "", *, tune: bool = False
) -> tuple[Scenario, AttackPlan | None]:
    """The scenario of an experiment by its file or name, and its attacks, if it has any."""
    made = None if name.is_file() else MADE.get(name.as_posix())
    if made is None:
        experiment = load_experiment(name, overrides)
        scenario = experiment.scenario(command, tune=tune)
        return scenario, attack_plan(experiment, scenario)
    given: dict[str, Any] = {"tune": tune}
    set_fields(given, overrides)
    return made.make_scenario(parse(made.options, given, name.as_posix())), None
