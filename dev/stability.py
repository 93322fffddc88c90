"""`python -m dev.stability`: how far rounding moves the lab's figures.

Each method unlearns from the lab's reference model and from copies whose weights are multiplied by
1 + 1e-6·ε (ε normal), which is less than any kernel's choice of order does in a whole run. What is
asked are the tuning questions. Finished runs are kept in --output.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from defuse.experiments.core.answers import FORGET, FORGET_TOKEN, Slice
from defuse.experiments.core.job import Request, read_answers, run_experiment
from defuse.experiments.core.metrics import Checkpoints, panel
from defuse.experiments.core.run import ExperimentContext
from defuse.experiments.core.scenario import ModelSource, Scenario, late
from defuse.experiments.synthetic.grid import SETTINGS, TUNING_SEED, Point, Setting
from defuse.experiments.synthetic.scenario import Options, make_scenario
from defuse.models.load import load_model, quiet
from defuse.utils.config import parse, set_fields, without_none
from defuse.utils.progress import shown
from defuse.utils.random import generator
from defuse.utils.runner import Runner

MOVE = 1e-6
AFTER = Slice("retain", FORGET_TOKEN, "statement")


def main() -> None:
    """Run, and print a table in Markdown."""
    asked = _parser().parse_args()
    pairs = [tuple(pair.split("/")) for pair in asked.pairs]
    points = [
        Point((method, retain), TUNING_SEED + seed, tried=_setting((method, retain), asked.set))
        for method, retain in pairs
        for seed in range(asked.seeds)
    ]
    found: list[list[Checkpoints]] = []
    for move in range(asked.moves):
        scenario = _scenario(asked.output, move, points)
        with shown() as progress:
            run_experiment(scenario, Request(runner=Runner("processes")), Console(), progress)
        answers = read_answers(ExperimentContext(scenario))
        found.append(list(answers.finished.values()))
    print("| method, seed | figure | at the last step | mean of the last quarter |")
    print("| --- | --- | --- | --- |")
    for point, moves in zip(points, zip(*found, strict=True), strict=True):
        for line in _lines(point, moves):
            print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.stability", description=__doc__)
    names = ["/".join(pair) for pair in SETTINGS]
    parser.add_argument("--pairs", nargs="+", choices=names, default=names, metavar="METHOD/LOSS")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--moves", type=int, default=3, help="Copies, the reference included.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/stability"))
    return parser


def _setting(pair: tuple[str, str], overrides: Sequence[str]) -> Setting:
    given = without_none(asdict(SETTINGS[pair]))
    set_fields(given, overrides)
    return parse(Setting, given)


def _scenario(output: Path, move: int, points: Sequence[Point]) -> Scenario:
    """The lab on a reference model that is moved by the draw `move`; 0 is the model itself."""
    folder = output / f"moved-{move}"
    whole = make_scenario(Options(tune=True, output=folder))
    model = whole.model.name if move == 0 else _moved(whole.model.name, folder / "model", move)
    source = ModelSource(model, device="cpu", dtype="float32")
    runs = [point.run(model, whole.folder) for point in points]
    return replace(whole, model=source, retrained=None, least_known=None).with_runs(runs)


def _moved(name: str, folder: Path, move: int) -> str:
    if not (folder / "config.json").is_file():
        loaded = load_model(name, dtype="float32")  # in half precision a move is rounded away
        with torch.no_grad(), quiet():
            for place, tensor in loaded.model.named_parameters():
                draw = torch.randn(tensor.shape, generator=generator(move, "moved", place))
                tensor.mul_(1 + MOVE * draw)
            loaded.model.save_pretrained(folder)
            loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def _lines(point: Point, moves: Sequence[Checkpoints]) -> Iterator[str]:
    for name, part in (("forget set", FORGET), ("after a forget-statement", AFTER)):
        last = [_accuracy(steps, part, [max(steps)]) for steps in moves]
        mean = [_accuracy(steps, part, late(steps)) for steps in moves]
        head = f"{' + '.join(point.pair)}, {point.seed}"
        yield f"| {head} | {name} | {_spread(last)} | {_spread(mean)} |"


def _accuracy(steps: Checkpoints, part: Slice, chosen: Sequence[int]) -> float:
    tables = [steps[step] for step in chosen]
    return float(panel(part, tables).correct.mean())


def _spread(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
