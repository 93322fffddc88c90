"""`python -m dev.reproduce_docs`: do the published figures come back on other kernels?

Runs the lab (and with --full the real model) with another number of threads, with PyTorch's plain
kernels, and without oneDNN. Prints every published figure beside the new ones, and ends with 1 if
one lies outside its prediction interval. What is finished is kept in --output.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from defuse.experiments.core.headlines import Headline, read_headlines
from defuse.experiments.core.job import Request, run_experiment
from defuse.report.format import interval
from defuse.statistics import Interval
from defuse.utils.progress import shown
from dev.publish import PUBLISHED, figures

ALPHA = 0.05


@dataclass(frozen=True)
class Variant:
    """Another way to compute the same: environment variables, threads, oneDNN."""

    threads: int = 1
    onednn: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


VARIANTS = {
    "plain-kernels": Variant(environment={"ATEN_CPU_CAPABILITY": "default"}),
    "without-onednn": Variant(onednn=False),
    "two-threads": Variant(threads=2),
}


def main() -> int:
    """Run the variants and compare; returns 1 if a published figure did not come back."""
    asked = _parser().parse_args()
    if asked.run is not None:
        name, variant = asked.run
        _run(name, variant, asked.output)
        return 0
    experiments = ["lab", "real"] if asked.full else ["lab"]
    work = [(name, variant) for name in experiments for variant in VARIANTS]
    # Two at a time: most variants use one thread.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: _start(each[0], each[1], asked.output), work))
    failed = 0
    for name in experiments:
        for line, differs in _comparison(name, asked.output):
            print(line)
            failed += differs
    print(f"{failed} published figures did not come back." if failed else "All came back.")
    return int(failed > 0)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.reproduce_docs", description=__doc__)
    parser.add_argument("--full", action="store_true", help="Also the real model.")
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce-docs"))
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    return parser


def _folder(output: Path, name: str, variant: str) -> Path:
    return output / name / variant


def _start(name: str, variant: str, output: Path) -> None:
    """Run a variant in a process of its own, since its kernels are chosen when torch starts."""
    command = [sys.executable, "-m", "dev.reproduce_docs", "--run", name, variant]
    environment = {**os.environ, **VARIANTS[variant].environment}
    subprocess.run([*command, "--output", str(output)], env=environment, check=True)  # noqa: S603


def _run(name: str, variant: str, output: Path) -> None:
    chosen, (build, _) = VARIANTS[variant], PUBLISHED[name]
    torch.set_num_threads(chosen.threads)
    with torch.backends.mkldnn.flags(enabled=chosen.onednn), shown() as progress:
        run_experiment(build(_folder(output, name, variant)), Request(), Console(), progress)


def _comparison(name: str, output: Path) -> Iterator[tuple[str, bool]]:
    """Lines of a Markdown table, and whether a figure in it differs."""
    build, path = PUBLISHED[name]
    scenarios = {variant: build(_folder(output, name, variant)) for variant in VARIANTS}
    found = {variant: figures(scenario) for variant, scenario in scenarios.items()}
    headlines = [each for each in read_headlines(path) if each.published]
    p_values = {variant: _corrected(headlines, own) for variant, own in found.items()}
    yield f"| {name}: conclusion | published | {' | '.join(VARIANTS)} | differs |", False
    yield f"|{' --- |' * (len(VARIANTS) + 3)}", False
    for place, each in enumerate(headlines):
        new = " | ".join(interval(own[each.says]) for own in found.values())
        lowest = min(own[place] for own in p_values.values())
        differs = lowest < ALPHA
        said = f"yes (p = {lowest:.3f})" if differs else "no"
        yield f"| {each.says} | {interval(each.published)} | {new} | {said} |", differs


def _corrected(headlines: Sequence[Headline], found: Mapping[str, Interval | None]) -> list[float]:
    """The corrected p-value of each headline in one variant; 0 where its runs are missing."""
    new = [found[each.says] for each in headlines]
    given = [
        (figure and each.p_value(figure)) or 0.0
        for each, figure in zip(headlines, new, strict=True)
    ]
    return holm(given)


if __name__ == "__main__":
    sys.exit(main())
