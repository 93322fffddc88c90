"""`python -m dev.coverage`: how often intervals over few seeds contain the truth, by simulation.

An invented experiment has eight conditions, whose accuracies and whose spreads between runs are as
seen in the lab. Runs answer the same questions; the truth is the mean over endless runs and
questions. The table of docs/stability.md is what this prints.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.few_seeds import seeded_means, two_heaps

# (mean, standard deviation between runs) on the logit scale. In accuracy their runs' standard
# deviations are 0.03 to 0.17: RMU's and its defences', then those of an unsteady setting.
CONDITIONS = (
    *((-2.2, 0.5), (1.2, 0.5), (1.0, 1.0), (2.5, 0.6)),
    *((2.5, 1.2), (-0.6, 1.0), (3.5, 2.0), (5.0, 0.5)),
)
QUESTION_SPREAD, NOISE = 2.5, 0.7
CONTROL = 0.985  # accuracy after a control token, from which a harm is measured
MANY = 400_000
HEAP = 1.6  # half the distance of two heaps


@dataclass(frozen=True)
class Coverage:
    """Shares of intervals that contain the truth: of accuracies and of differences of accuracies.

    `lowest`: of the worst condition. `false_heaps`, `found_heaps`: shares of conditions said to
    fall into two heaps, where they do not and where they do.
    """

    runs: int
    questions: int
    accuracy: float
    difference: float
    lowest: float
    false_heaps: float
    found_heaps: float


def measure(runs: int, questions: int, repeats: int, seed: int) -> Coverage:
    """Coverage over `repeats` experiments."""
    rng = torch.Generator().manual_seed(seed)
    truths = [_truth(mean, spread, rng) for mean, spread in CONDITIONS]
    hits = torch.zeros(2, len(CONDITIONS))
    false_heaps = found_heaps = 0
    for _ in range(repeats):
        hard = QUESTION_SPREAD * _normal(rng, questions)
        right = [_answers(m, s * _normal(rng, runs), hard, rng) for m, s in CONDITIONS]
        harms = [_control(runs, questions, rng) - table for table in right]
        for kind, tables in enumerate((right, harms)):
            means = seeded_means(tables, proportions=kind == 0)
            for place, (mean, truth) in enumerate(zip(means, truths, strict=True)):
                wanted = truth if kind == 0 else CONTROL - truth
                hits[kind, place] += mean.low <= wanted <= mean.high
        false_heaps += sum(two_heaps(table) is not None for table in right)
        sides = HEAP * torch.where(torch.rand(runs, generator=rng) < 0.5, 1.0, -1.0)
        found_heaps += two_heaps(_answers(1.0, sides, hard, rng)) is not None
    shares = hits / repeats
    return Coverage(
        runs,
        questions,
        float(shares[0].mean()),
        float(shares[1].mean()),
        float(shares.min()),
        false_heaps / repeats / len(CONDITIONS),
        found_heaps / repeats,
    )


def table(rows: Sequence[Coverage]) -> str:
    """The rows in Markdown."""
    lines = [
        "| seeds | questions | accuracy | difference | worst condition | two heaps, falsely | two "
        "heaps, rightly |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        shares = (
            *(row.accuracy, row.difference, row.lowest),
            *(row.false_heaps, row.found_heaps),
        )
        cells = " | ".join(f"{share:.2f}" for share in shares)
        lines.append(f"| {row.runs} | {row.questions} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m dev.coverage", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = parser.parse_args().repeats
    print(table([measure(r, q, repeats, seed=r) for r in (2, 3, 5, 10) for q in (54, 135)]))


def _truth(mean: float, spread: float, rng: torch.Generator) -> float:
    logits = mean + spread * _normal(rng, MANY) + QUESTION_SPREAD * _normal(rng, MANY)
    return float((logits + NOISE * _normal(rng, MANY)).sigmoid().mean())


def _answers(mean: float, by_run: Tensor, hard: Tensor, rng: torch.Generator) -> Tensor:
    noise = NOISE * torch.randn(len(by_run), len(hard), generator=rng, dtype=torch.float64)
    chances = (mean + by_run[:, None] + hard + noise).sigmoid()
    return (torch.rand(chances.shape, generator=rng, dtype=torch.float64) < chances).double()


def _control(runs: int, questions: int, rng: torch.Generator) -> Tensor:
    return (torch.rand(runs, questions, generator=rng) < CONTROL).double()


def _normal(rng: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, generator=rng, dtype=torch.float64)


if __name__ == "__main__":
    main()
