"""Defuse's unlearning step beside the plain one: equal results first, then time and memory.

    python -m benchmarks.unlearning_step                    # all six methods
    python -m benchmarks.unlearning_step --method rmu --repeats 9
    python -m benchmarks.unlearning_step --method simnpo --profile     # where the time goes

The model is a random float32 Llama of 32 layers × 384, vocabulary 4096; layer 7, `down_proj` of
blocks 5 to 7 trained, everything else frozen in both; 4 + 4 texts of 256 tokens. Both sides run
AdamW. Times alternate within one process; each peak of memory comes from a process of its own and
is counted above what the imports take.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.plain import PlainStep
from defuse.batches import TextBatch, collate
from defuse.borrowed import frozen_model
from defuse.decoder import Decoder
from defuse.engine import Objective, SharedPrefixStep, StepBatch
from defuse.methods import METHODS, HiddenMSE, LogitKL, RepresentationMethod, Steering
from defuse.noise import GaussianNoise
from defuse.schedule import generator
from defuse.store import Bucket, FrozenStore
from defuse.texts import Encoded
from defuse.unlearning import Unlearning, trained_parameters

TEXTS, TOKENS, VOCABULARY, SEED = 4, 256, 4096, 0
AGAIN = 2  # the batch that comes again
MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
TIMES = ("plain", "Defuse", "faster", "texts again", "faster", "plain mem", "Defuse mem", "share")
PROFILE = ("plain", "products", "Defuse", "products")


@dataclass(frozen=True)
class Run:
    """One side of the comparison: call `step` with a batch's number."""

    step: Callable[[int], object]
    gradients: Callable[[], Sequence[torch.Tensor]]


def random_model(layers: int, hidden: int) -> PreTrainedModel:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=TOKENS,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def unlearning_for(name: str, noise_std: float) -> Unlearning:
    method = METHODS[name](refusals=("no",)) if name == "dpo" else METHODS[name]()  # type: ignore[call-arg]
    retain = HiddenMSE() if isinstance(method, RepresentationMethod) else LogitKL()
    return Unlearning(method, retain, GaussianNoise(std=noise_std) if noise_std else None, layer=7)


def texts(name: str, turn: int) -> TextBatch:
    rng = generator(SEED, "texts", name, turn)
    ids = torch.randint(3, VOCABULARY, (TEXTS, TOKENS), generator=rng).tolist()
    items = [(name, turn * TEXTS + row) for row in range(TEXTS)]
    return collate([Encoded(tuple(row), 1) for row in ids], items, pad_token_id=0)


def batch(turn: int, *, refusals: bool) -> StepBatch:
    refusal = texts("refusals", turn) if refusals else None
    return StepBatch(texts("forget", turn), texts("retain", turn), refusal)


def objective_for(unlearning: Unlearning, hidden: int) -> Objective:
    direction = torch.rand(hidden, generator=torch.Generator().manual_seed(SEED))
    steering = Steering(direction / direction.norm(), 6.5, 6.5)
    representation = isinstance(unlearning.method, RepresentationMethod)
    std = 0.0 if unlearning.noise is None else unlearning.noise.resolve_std(1.0)
    return Objective("bench", steering if representation else None, weight=5.0, noise_std=std)


def plain_run(model: PreTrainedModel, unlearning: Unlearning) -> Run:
    updated, reference = deepcopy(model), deepcopy(model)
    names = trained_parameters(Decoder(model), unlearning)
    trained = [updated.get_parameter(name).requires_grad_(True) for name in names]
    engine = PlainStep(updated, reference, unlearning, SEED)
    objective, optimiser = objective_for(unlearning, model.config.hidden_size), adamw(trained)

    def step(turn: int) -> tuple[torch.Tensor, torch.Tensor]:
        optimiser.zero_grad()
        losses = engine.backward(objective, batch(turn, refusals=wants_refusals(unlearning)), turn)
        optimiser.step()
        return losses

    return Run(step, lambda: [gradient_of(tensor) for tensor in trained])


def shared_run(model: PreTrainedModel, unlearning: Unlearning, kept_turn: int | None = None) -> Run:
    """Defuse's step; what the frozen model makes of the texts of batch `kept_turn` is kept."""
    names = trained_parameters(Decoder(model), unlearning)
    weights = {name: t.detach().clone().requires_grad_() for name, t in names.items()}
    engine = SharedPrefixStep(Decoder(model), unlearning, weights, seed=SEED)
    if kept_turn is not None:
        engine.hidden_store = engine.value_store = store_of(unlearning, kept_turn)
    objective = objective_for(unlearning, model.config.hidden_size)
    optimiser = adamw(list(weights.values()))

    def step(turn: int) -> tuple[torch.Tensor, torch.Tensor]:
        optimiser.zero_grad()
        with frozen_model(model):
            losses = engine.backward(
                objective, batch(turn, refusals=wants_refusals(unlearning)), turn
            )
        optimiser.step()
        return losses.forget, losses.retain

    return Run(step, lambda: [gradient_of(tensor) for tensor in weights.values()])


def store_of(unlearning: Unlearning, turn: int) -> FrozenStore:
    one = batch(turn, refusals=wants_refusals(unlearning))
    parts = [part for part in (one.forget, one.retain, one.refusal) if part is not None]
    return FrozenStore(Bucket(p.items[0][0], p.items, lambda p=p: p) for p in parts)


def wants_refusals(unlearning: Unlearning) -> bool:
    return hasattr(unlearning.method, "refusals")


def adamw(trained: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.0, fused=True)


def gradient_of(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def assert_equal(plain: Run, shared: Run) -> None:
    """Losses and gradients to 1e-5 relative, at a second step, away from the start."""
    for turn in range(2):
        expected, found = plain.step(turn), shared.step(turn)
    total = sum(expected)  # type: ignore[arg-type]
    for one, other in zip(found, expected, strict=True):  # type: ignore[call-overload]
        # So near the start a retain loss is a difference of almost equal states.
        assert (one - other).abs() <= 1e-5 * other.abs() + 1e-6 * total, (one, other)
    for one, other in zip(shared.gradients(), plain.gradients(), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def ratio(plain: Run, shared: Run, repeats: int, *, again: bool) -> tuple[float, float, float]:
    """Median seconds of each, alternating, and the median of the pairs' ratios."""
    pairs = []
    for repeat in range(repeats + 1):
        turn = AGAIN if again else AGAIN + repeat
        pairs.append((seconds(plain, turn), seconds(shared, turn)))
    pairs = pairs[1:]  # the first fills caches
    return (
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(one / other for one, other in pairs),
    )


def seconds(run: Run, turn: int) -> float:
    start = time.perf_counter()
    run.step(turn)
    return time.perf_counter() - start


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


def memory_of_child(method: str, side: str, arguments: argparse.Namespace) -> float:
    options = ["--layers", arguments.layers, "--hidden", arguments.hidden, "--noise-std"]
    options += [arguments.noise_std, "--method", method, "--memory-of", side]
    command = [sys.executable, "-m", "benchmarks.unlearning_step", *map(str, options)]
    output = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return float(output.stdout)


def print_memory(arguments: argparse.Namespace) -> None:
    """In the child: MiB that three steps take at their peak above the imports."""
    before = resident("VmRSS")
    model = random_model(arguments.layers, arguments.hidden)
    unlearning = unlearning_for(arguments.method[0], arguments.noise_std)
    run = (plain_run if arguments.memory_of == "plain" else shared_run)(model, unlearning)
    if arguments.memory_of == "plain":
        del model  # the plain side holds its own two
    for turn in range(3):
        run.step(turn)
    sys.stdout.write(f"{resident('VmHWM') - before}\n")


def compare(method: str, arguments: argparse.Namespace) -> list[str]:
    model = random_model(arguments.layers, arguments.hidden)
    unlearning = unlearning_for(method, arguments.noise_std)
    plain = plain_run(model, unlearning)
    single, kept = shared_run(model, unlearning), shared_run(model, unlearning, AGAIN)
    assert_equal(plain, single)
    once = ratio(plain, single, arguments.repeats, again=False)
    again = ratio(plain, kept, arguments.repeats, again=True)
    memory = [memory_of_child(method, side, arguments) for side in ("plain", "shared")]
    return [
        f"{unlearning.method.name} + {unlearning.retain.name}",  # type: ignore[union-attr]
        f"{once[0]:.2f} s",
        f"{once[1]:.2f} s",
        f"{once[2]:.2f}×",
        f"{again[1]:.2f} s",
        f"{again[2]:.2f}×",
        f"{memory[0]:.0f} MiB",
        f"{memory[1]:.0f} MiB",
        f"{memory[1] / memory[0]:.2f}",
    ]


def profile(method: str, arguments: argparse.Namespace) -> list[str]:
    """Processor seconds of one step on each side: in all, and in matrix products alone."""
    model = random_model(arguments.layers, arguments.hidden)
    unlearning = unlearning_for(method, arguments.noise_std)
    cells = [f"{unlearning.method.name} + {unlearning.retain.name}"]  # type: ignore[union-attr]
    for run in (plain_run(model, unlearning), shared_run(model, unlearning)):
        run.step(0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            run.step(1)
        times = {event.key: event.self_cpu_time_total / 1e6 for event in seen.key_averages()}
        products = sum(times.get(name, 0.0) for name in MATRIX_PRODUCTS)
        cells += [f"{sum(times.values()):.2f} s", f"{products:.2f} s"]
    return cells


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--noise-std", type=float, default=0.0, help="0: without RNA")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="where a step's time goes")
    parser.add_argument("--memory-of", choices=["plain", "shared"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_memory(arguments)
        return
    title = "one step's processor time" if arguments.profile else "equal losses and gradients"
    table = Table(title=f"Unlearning step: plain against Defuse, {title}")
    for column in ("method + retain", *(PROFILE if arguments.profile else TIMES)):
        table.add_column(column, no_wrap=True)
    for method in arguments.method or list(METHODS):
        table.add_row(*(profile if arguments.profile else compare)(method, arguments))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
