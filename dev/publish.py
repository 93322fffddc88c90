"""`python -m dev.publish lab FOLDER`: writes an experiment's figures beside its conclusions.

FOLDER is the output of the run whose figures README.md and docs/results.md quote.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from math import asin, sqrt
from pathlib import Path
from typing import Any

from defuse.experiments import synthetic
from defuse.experiments.core.defences import make_defences
from defuse.experiments.core.experiment_file import load_experiment
from defuse.experiments.core.experiment_scenario import make_scenario
from defuse.experiments.core.headlines import Headline, read_headlines
from defuse.experiments.core.job import read_answers
from defuse.experiments.core.metrics import make_groups
from defuse.experiments.core.run import ExperimentContext
from defuse.experiments.core.scenario import Scenario
from defuse.experiments.synthetic.scenario import Options
from defuse.experiments.synthetic.scenario import make_scenario as make_lab
from defuse.few_seeds import NORMAL, SeededMean
from defuse.recipes import EXPERIMENTS, FOLDER, shipped_recipe
from defuse.statistics import Interval, Z
from defuse.utils.config import dump, without_none
from defuse.utils.files import write_json

DIGITS = 6
LAB = Path(synthetic.__file__).parent


def _elements(output: Path) -> Scenario:
    shipped = load_experiment(shipped_recipe(EXPERIMENTS + "elements"))
    return make_scenario(replace(shipped, output=str(output)))


# Each experiment's scenario in a folder, and the file of its headlines.
PUBLISHED: Mapping[str, tuple[Callable[[Path], Scenario], Path]] = {
    "lab": (lambda folder: make_lab(Options(output=folder)), LAB / "headlines.json"),
    "lab-full": (
        lambda folder: make_lab(Options(full=True, output=folder)),
        LAB / "headlines-full.json",
    ),
    "real": (_elements, FOLDER / EXPERIMENTS / "elements" / "headlines.json"),
}


def main() -> None:
    """Write the figures of one experiment's headlines."""
    parser = argparse.ArgumentParser(prog="python -m dev.publish", description=__doc__)
    parser.add_argument("experiment", choices=PUBLISHED)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    build, path = PUBLISHED[asked.experiment]
    scenario = build(asked.folder)
    found = figures(scenario)
    written = [_fields(each, found[each.says]) for each in read_headlines(path)]
    write_json(path, {"headlines": written})


def figures(scenario: Scenario) -> dict[str, Interval | None]:
    """The figure of every headline whose runs are finished, by its conclusion."""
    answers = read_answers(ExperimentContext(scenario))
    groups, defences = make_groups(answers), make_defences(answers, scenario.layout.matched_at)
    headlines = read_headlines(scenario.headlines)
    return {each.says: each.find(groups, defences) for each in headlines}


def _fields(headline: Headline, figure: Interval | None) -> Mapping[str, Any]:
    fields = without_none(dump(replace(headline, published=None)))
    if figure is None:
        return fields
    error, freedom = _error(headline, figure)
    numbers = asdict(SeededMean(figure.value, figure.low, figure.high, error, freedom))
    return {**fields, "published": {n: round(v, DIGITS) for n, v in without_none(numbers).items()}}


def _error(headline: Headline, figure: Interval) -> tuple[float, float]:
    """A figure's standard error and its degrees of freedom."""
    if isinstance(figure, SeededMean):
        return figure.error, figure.freedom
    ends = [figure.low, figure.high]  # of one model: over questions alone
    if headline.is_proportion:
        ends = [asin(sqrt(end)) for end in ends]
    return (ends[1] - ends[0]) / 2 / Z, NORMAL


if __name__ == "__main__":
    main()
